// The line: how much waits, who is next, and how many are ahead of you.

import { count, make, say, seconds } from "/page/words.js";

/** Show the line; return the row of this page's request, if it waits. */
export function showLine(words, list, queue, own) {
  const mine = queue.line.find((row) => own(row.request));
  if (!queue.segments) say(words, "Nothing waits.");
  else {
    const work = queue.seconds === null ? "and no worker takes them" : `about ${seconds(queue.seconds)} of work`;
    const of = `${count(queue.segments, "segment")} of ${count(queue.requests, "request")} wait, ${work}.`;
    say(words, mine ? `${of} ${ahead(mine.ahead)}` : of);
  }
  list.replaceChildren(...queue.line.map((row) => {
    const isOwn = own(row.request);
    const item = make("li", isOwn ? "own" : "", isOwn ? "you" : "");
    item.title = `${isOwn ? "yours" : row.request}: ${row.characters} characters, waits ${seconds(row.waited_seconds)}`;
    item.style.flexGrow = String(Math.max(20, row.characters));
    return item;
  }));
  return mine;
}

export function ahead(number) {
  return number === 0 ? "You are next." : `${number} ahead of you.`;
}
