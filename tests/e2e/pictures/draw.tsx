// Draws a dashboard's committed JSON with Grafana's own panels, from answers that Prometheus gave (watch.py).
// State timelines and tables are drawn here: the first is not in Grafana's packages, the second does not stand bundling.
import React from "react";
import { createRoot } from "react-dom/client";
import {
  createTheme, dateTime, FieldType, getDisplayProcessor, LoadingState, standardFieldConfigEditorRegistry,
  standardTransformersRegistry, ThemeContext, toDataFrame, transformDataFrame,
} from "@grafana/data";
import * as transformers from "@grafana/data";
import { BigValue, PanelChrome, TimeSeries } from "@grafana/ui";
import { lastValueFrom } from "rxjs";

const WIDTH = 1900, CELL = 30, GAP = 8;
const theme = createTheme({ colors: { mode: "dark" } });
const page: any = window;
standardFieldConfigEditorRegistry.setInit(() => []);
standardTransformersRegistry.setInit(() =>
  [transformers.standardTransformers.mergeTransformer, transformers.standardTransformers.organizeFieldsTransformer].map(
    (one: any) => ({ id: one.id, name: one.name, transformation: one, editor: () => null }) as any));

const legend = (format: string, metric: any) =>
  (format ?? "").replace(/{{\s*(\w+)\s*}}/g, (_, label) => metric[label] ?? "") || "value";

function configOf(panel: any, name: string): any {
  const config = structuredClone(panel.fieldConfig.defaults ?? {});
  config.custom ??= {};
  for (const override of panel.fieldConfig.overrides ?? []) {
    if (override.matcher.id !== "byName" || override.matcher.options !== name) continue;
    for (const { id, value } of override.properties) {
      if (id.startsWith("custom.")) config.custom[id.slice(7)] = value; else config[id] = value;
    }
  }
  return config;
}

function dressed(field: any, panel: any, index: number): any {
  const name = field.config?.displayName ?? field.name;  // renamed by a transformation, or not
  field.config = { ...configOf(panel, name), displayName: name };
  if (field.type === FieldType.number) {
    const lines = panel.type === "timeseries";
    field.config.color ??= { mode: lines ? "palette-classic" : "thresholds" };
    if (lines) {
      const custom = { drawStyle: "line", lineInterpolation: "linear", pointSize: 5, spanNulls: 20000, axisPlacement: "auto", ...field.config.custom };
      custom.stacking = { group: "A", mode: "none", ...(custom.stacking ?? {}) };
      field.config.custom = custom;
    }
  }
  field.state = { ...field.state, seriesIndex: index };
  field.display = getDisplayProcessor({ field, theme, timeZone: "utc" });
  return field;
}

function lines(panel: any, answers: any) {
  let index = 0;
  return panel.targets.flatMap((target: any) => answers[target.refId].result.map((series: any) => {
    const name = legend(target.legendFormat, series.metric);
    const frame = toDataFrame({ refId: target.refId, name, fields: [
      { name: "Time", type: FieldType.time, values: series.values.map((one: any) => one[0] * 1000) },
      { name, type: FieldType.number, values: series.values.map((one: any) => (one[1] === "NaN" ? null : +one[1])) },
    ] });
    frame.fields[0].display = getDisplayProcessor({ field: frame.fields[0], theme, timeZone: "utc" });
    dressed(frame.fields[1], panel, index++);
    return frame;
  }));
}

async function cells(panel: any, answers: any) {
  const several = panel.targets.length > 1;
  const frames = panel.targets.map((target: any) => {
    const found = answers[target.refId].result;
    const labels = [...new Set(found.flatMap((one: any) => Object.keys(one.metric)))] as string[];
    return toDataFrame({ refId: target.refId, fields: [
      { name: "Time", type: FieldType.time, values: found.map((one: any) => one.value[0] * 1000) },
      ...labels.map((label) => ({ name: label, type: FieldType.string, values: found.map((one: any) => one.metric[label] ?? "") })),
      { name: several ? `Value #${target.refId}` : "Value", type: FieldType.number, values: found.map((one: any) => +one.value[1]) },
    ] });
  }).filter((frame: any) => frame.length);
  if (!frames.length) return null;
  const [frame] = await lastValueFrom(transformDataFrame(panel.transformations, frames));
  frame.fields.forEach((field: any, index: number) => dressed(field, panel, index));
  return frame;
}

const Empty = ({ panel }: any) => (
  <div style={{ color: "#8e8e8e", display: "grid", placeItems: "center", height: "100%" }}>{panel.fieldConfig.defaults.noValue ?? "No data"}</div>);

function Timeline({ panel, answers, width, height, since, until }: any) {
  const states = panel.fieldConfig.defaults.mappings[0].options;
  const rows = answers.A.result.map((one: any) => ({ name: legend(panel.targets[0].legendFormat, one.metric), values: one.values }))
    .sort((a: any, b: any) => a.name.localeCompare(b.name));
  const seen = new Set<string>();
  const left = 130, bottom = 26, row = (height - bottom) / rows.length, step = 2;
  const colour = (name: string) => theme.visualization.getColorByName(name);
  return <div style={{ position: "relative", width, height, fontSize: 12 }}>
    {rows.map((one: any, y: number) => <div key={one.name} style={{ position: "absolute", top: y * row, height: row, width }}>
      <div style={{ position: "absolute", top: row / 2 - 9, left: 0, width: left - 8, textAlign: "right" }}>{one.name}</div>
      {one.values.map(([at, value]: any) => { seen.add(value); const scale = (width - left) / (until - since);
        return <div key={at} style={{ position: "absolute", top: row * 0.08, height: row * 0.84, left: left + (at - since) * scale, width: step * scale + 0.6, background: colour(states[value]?.color ?? "text") }} />; })}
    </div>)}
    <div style={{ position: "absolute", bottom: 2, left, display: "flex", gap: 14 }}>{Object.keys(states).filter((value) => seen.has(value)).map((value) =>
      <span key={value}><i style={{ display: "inline-block", width: 14, height: 4, borderRadius: 2, marginRight: 5, verticalAlign: "middle", background: colour(states[value].color) }} />{states[value].text}</span>)}</div>
  </div>;
}

function Rows({ frame }: any) {
  return <table><thead><tr>{frame.fields.map((field: any) => <th key={field.name}>{field.config.displayName}</th>)}</tr></thead>
    <tbody>{[...Array(frame.length).keys()].map((row) => <tr key={row}>{frame.fields.map((field: any) => {
      const value = field.values[row];
      const shown = field.display(value);
      const ground = field.config.custom.cellOptions && value != null && !/transparent|, ?0\)$/.test(shown.color) ? shown.color : undefined;
      return <td key={field.name} style={{ background: ground, color: ground && "#111217" }}>{value == null ? "" : `${shown.prefix ?? ""}${shown.text}${shown.suffix ?? ""}`}</td>;
    })}</tr>)}</tbody></table>;
}

function Figure({ panel, answers, width, height }: any) {
  const [one] = answers.A.result;
  const field: any = dressed({ name: panel.title, type: FieldType.number, config: {}, values: [] }, panel, 0);
  const usable = one && isFinite(+one.value[1]);
  const shown = usable ? field.display(+one.value[1]) : { text: panel.fieldConfig.defaults.noValue, numeric: NaN, color: theme.colors.background.secondary };
  return <BigValue width={width} height={height} theme={theme} colorMode={panel.options.colorMode} graphMode={"none" as any} justifyMode={"center" as any} value={shown} />;
}

function Content({ item, width, height, since, until }: any) {
  const { panel, answers, table, frames } = item;
  switch (panel.type) {
    case "stat": return <Figure {...{ panel, answers, width, height }} />;
    case "state-timeline": return <Timeline {...{ panel, answers, width, height, since, until }} />;
    case "table": return table ? <Rows frame={table} /> : <Empty panel={panel} />;
  }
  if (!frames.length) return <Empty panel={panel} />;
  const range: any = { from: dateTime(since * 1000), to: dateTime(until * 1000), raw: { from: "now-5m", to: "now" } };
  return <TimeSeries frames={frames} structureRev={1} width={width} height={height} timeRange={range} timeZone="browser"
    legend={panel.options.legend} tweakAxis={(one: any) => one} tweakScale={(one: any) => one} />;
}

async function main() {
  const { since, until, dashboards } = page.answers;
  const { dashboard, answers } = dashboards.find((one: any) => one.name === location.hash.slice(1));
  const items = await Promise.all(dashboard.panels.map(async (panel: any, index: number) => ({
    panel, answers: answers[index],
    table: panel.type === "table" ? await cells(panel, answers[index]) : null,
    frames: panel.type === "timeseries" ? lines(panel, answers[index]) : [],
  })));
  const column = (WIDTH - GAP) / 24, bottom = Math.max(...dashboard.panels.map((one: any) => one.gridPos.y + one.gridPos.h));
  const place = (at: any) => ({ left: GAP + at.x * column, top: GAP + at.y * (CELL + GAP), width: at.w * column - GAP, height: at.h * (CELL + GAP) - GAP });
  const App = () => <ThemeContext.Provider value={theme}>
    <div id="dashboard" style={{ position: "relative", width: WIDTH + GAP, height: bottom * (CELL + GAP) + GAP, background: theme.colors.background.canvas, color: theme.colors.text.primary, fontFamily: theme.typography.fontFamily }}>
      {items.map((item: any, index: number) => { const box = place(item.panel.gridPos);
        return <div key={index} style={{ position: "absolute", ...box }}>{item.panel.type === "row"
          ? <div style={{ fontSize: 16, fontWeight: 500, paddingTop: 6 }}>{item.panel.title}</div>
          : <PanelChrome width={box.width} height={box.height} title={item.panel.title} loadingState={LoadingState.Done}>
              {(width: number, height: number) => <Content {...{ item, width, height, since, until }} />}</PanelChrome>}</div>; })}
    </div></ThemeContext.Provider>;
  createRoot(document.getElementById("root")!).render(<App />);
}
main().catch((error) => { document.body.append(String(error.stack)); });
