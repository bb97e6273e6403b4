import { FRAME_RATE_HZ, layOut, layOutHeard, type RateReport, type TimelineLayout, type Turn } from "../src";
import { byId, make } from "./dom";

/** The answer as bars: one a token, as wide as it lasts, with the words above and seconds below. */
export class SaidTimeline {
  readonly #track = byId("track");
  readonly #playhead = byId("playhead");
  readonly #list = new Bars("tokens");
  #turnId: string | undefined;
  #beganMs = 0;
  #layout: TimelineLayout | undefined;
  #moving = false;

  /** Shows `turn`; bars that are already there stay. */
  show(turn: Turn | undefined): void {
    if (turn === undefined) return;
    const layout = layOut(turn);
    if (turn.id !== this.#turnId) {
      this.#beganMs = performance.now() - (layout.totalFrames / FRAME_RATE_HZ) * 1000;
      this.#list.clear();
      byId("ruler").replaceChildren();
    }
    this.#turnId = turn.id;
    this.#layout = layout;
    this.#track.style.setProperty("--frames", String(layout.totalFrames));
    this.#list.draw(layout, (bar) => `code ${bar.code}, ${bar.durationFrames * 80} ms`);
    drawWords(layout);
    const seconds = byId("ruler");
    for (let second = seconds.childElementCount; second <= layout.secondsShown; second += 1) {
      seconds.append(make("span", `${second} s`, { at: second * FRAME_RATE_HZ }));
    }
    const cut = turn.status === "interrupted" ? ", interrupted" : "";
    byId("figures").textContent = `${figures(layout)}${cut}`;
    this.#track.setAttribute("aria-label", `Tokens of an answer: ${byId("figures").textContent}`);
    this.#follow(turn.status === "open");
  }

  /** The words find their places anew, once they can be measured. */
  lay(): void {
    if (this.#layout !== undefined) drawWords(this.#layout);
  }

  clear(): void {
    this.#turnId = this.#layout = undefined;
    this.#follow(false);
    this.#list.clear();
    for (const id of ["words", "ruler", "figures"]) byId(id).replaceChildren();
  }

  /** Moves the playhead with the sound, and the view with the playhead. */
  #follow(moving: boolean): void {
    this.#moving = moving;
    if (!moving) {
      this.#playhead.hidden = true;
      return;
    }
    if (!this.#playhead.hidden) return;
    this.#playhead.hidden = false;
    this.#track.scrollLeft = 0;
    const step = (): void => {
      if (!this.#moving || this.#layout === undefined) return;
      const now = ((performance.now() - this.#beganMs) / 1000) * FRAME_RATE_HZ;
      this.#playhead.style.setProperty("--at", String(Math.max(0, Math.min(now, this.#layout.totalFrames))));
      const left = this.#playhead.getBoundingClientRect().left - this.#track.getBoundingClientRect().left;
      if (left > this.#track.clientWidth * 0.8) this.#track.scrollLeft += left - this.#track.clientWidth * 0.8;
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }
}

/** What was heard of a turn, as the groups it was merged to. */
export class HeardTimeline {
  readonly #list = new Bars("heard-tokens");

  show(turn: Turn | undefined): void {
    if (turn?.heardDurationsMs === undefined) return;
    const layout = layOutHeard(turn.heardDurationsMs);
    byId("heard-track").style.setProperty("--frames", String(layout.totalFrames));
    this.#list.draw(layout, (bar) => `${bar.durationFrames * 80} ms`);
    byId("heard-figures").textContent = figures(layout);
    byId("heard-track").setAttribute("aria-label", `Tokens of your turn: ${figures(layout)}`);
  }

  clear(): void {
    this.#list.clear();
    byId("heard-figures").replaceChildren();
  }
}

/** A sentence about a rate: what was asked for, what came of it, and why. */
export function explainRate(report: RateReport, side: "heard" | "said"): string {
  const { requested_hz: asked, realised_hz: came, reason } = report;
  if (typeof asked !== "number" || came === undefined) return "";
  const why = reason === undefined ? "" : ` (${reason})`;
  const aimed = `Aimed at ${asked} tokens a second${why}, it came to ${came.toFixed(1)}`;
  if (Math.abs(came - asked) < 0.1) return `${aimed}.`;
  const because =
    side === "said"
      ? "the voice says for each token how many frames of 80 ms it lasts, and no token lasts half a frame"
      : came < asked
        ? "sounds alike and pauses share a token however many are asked for"
        : "what changes quickly gets tokens of its own";
  return `${aimed}: ${because}.`;
}

type Bar = TimelineLayout["bars"][number];

/** A list of bars of which only the changed end is drawn anew. */
class Bars {
  readonly #list: HTMLElement;
  #drawn: string[] = [];

  constructor(id: string) {
    this.#list = byId(id);
  }

  draw(layout: TimelineLayout, title: (bar: Bar) => string): void {
    const wanted = layout.bars.map((bar) => JSON.stringify(bar));
    const changed = wanted.findIndex((bar, index) => bar !== this.#drawn[index]);
    const kept = changed < 0 ? wanted.length : changed;
    while (this.#list.childElementCount > kept) this.#list.lastElementChild?.remove();
    for (const bar of layout.bars.slice(kept)) {
      const item = make("li", label(bar), { at: bar.startFrame, for: bar.durationFrames });
      item.title = title(bar);
      if (!bar.heard) item.dataset.unheard = "";
      this.#list.append(item);
    }
    this.#drawn = wanted;
  }

  clear(): void {
    this.#list.replaceChildren();
    this.#drawn = [];
  }
}

/** Frames, where there is room for a figure. */
function label({ durationFrames }: Bar): string {
  return durationFrames < 1 ? "" : String(durationFrames);
}

/** Each word stands over its sound; one that would run into another moves to a lane above, measured, not guessed. */
function drawWords(layout: TimelineLayout): void {
  const place = byId("words");
  const marks = layout.words.map((word) => make("span", word.text, { at: word.startFrame }));
  place.replaceChildren(...marks);
  const frees = [-Infinity, -Infinity, -Infinity];
  for (const mark of marks) {
    const { left, right } = mark.getBoundingClientRect();
    const lane = frees.findIndex((free) => free <= left);
    if (lane < 0) mark.hidden = true;
    else frees[lane] = right + 4;
    mark.dataset.lane = String(lane);
  }
}

function figures(layout: TimelineLayout): string {
  return `${layout.realisedHz.toFixed(1)} a second · ${layout.bars.length} tokens in ${layout.secondsShown.toFixed(1)} s`;
}
