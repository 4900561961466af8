import { build } from "esbuild";

await build({
  entryPoints: ["draw.tsx"], bundle: true, outfile: "draw.js", format: "iife", platform: "browser", jsx: "automatic", logLevel: "error",
  define: { "process.env.NODE_ENV": '"production"', "process.env": "{}", global: "window" },
  loader: { ".svg": "dataurl", ".woff2": "dataurl", ".ttf": "dataurl", ".png": "dataurl", ".css": "css" },
});
