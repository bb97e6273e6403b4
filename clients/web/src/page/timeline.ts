import { FRAME_RATE_HZ, layOut, type TimelineLayout, type Turn } from "../sdk";
import { byId, make } from "./dom";

const DEEP_FRAMES = 7; // from here figures need the other ink on the light theme, from MIDDLE_FRAMES on the dark one
const MIDDLE_FRAMES = 5;
const LETTER_FRAMES = 0.62; // about how many frames wide one letter of a word label is

/** The answer as bars: one a token, as wide as it lasts, with the words above and seconds below. */
export class Timeline {
  readonly #track = byId("track");
  readonly #reel = byId("reel");
  readonly #playhead = byId("playhead");
  #turnId: string | undefined;
  #bars: string[] = []; // those on the page
  #beganMs = 0;
  #layout: TimelineLayout | undefined;
  #moving = false;

  /** Shows `turn`; bars that are already there stay. */
  show(turn: Turn | undefined): void {
    if (turn === undefined) return;
    const layout = layOut(turn);
    const begins = turn.id !== this.#turnId;
    if (begins) this.#beganMs = performance.now() - (layout.totalFrames / FRAME_RATE_HZ) * 1000;
    if (begins) this.#clear();
    this.#turnId = turn.id;
    this.#layout = layout;
    this.#draw(layout);
    byId("timeline-hint").hidden = true;
    byId("figures").replaceChildren(...figures(layout, turn.status));
    this.#track.setAttribute("aria-label", `Speech tokens of an answer, one bar each: ${byId("figures").textContent}`);
    this.#follow(turn.status === "open");
  }

  #clear(): void {
    for (const id of ["tokens", "words", "ruler"]) byId(id).replaceChildren();
    this.#bars = [];
  }

  #draw(layout: TimelineLayout): void {
    this.#reel.style.setProperty("--frames", String(layout.totalFrames));
    const list = byId("tokens");
    const wanted = layout.bars.map((bar) => JSON.stringify(bar));
    const changed = wanted.findIndex((bar, index) => bar !== this.#bars[index]);
    const kept = changed < 0 ? wanted.length : changed;
    while (list.childElementCount > kept) list.lastElementChild?.remove();
    for (const bar of layout.bars.slice(kept)) {
      const item = make("li", String(bar.durationFrames), { at: bar.startFrame, for: bar.durationFrames });
      item.title = `code ${bar.code}, ${bar.durationFrames} frames, ${bar.durationFrames * 80} ms`;
      if (bar.durationFrames >= DEEP_FRAMES) item.dataset.deep = "";
      else if (bar.durationFrames >= MIDDLE_FRAMES) item.dataset.middle = "";
      if (!bar.heard) item.dataset.unheard = "";
      list.append(item);
    }
    this.#bars = wanted;
    drawWords(layout);
    const seconds = byId("ruler");
    for (let second = seconds.childElementCount; second <= layout.secondsShown; second += 1) {
      seconds.append(make("span", `${second} s`, { at: second * FRAME_RATE_HZ }));
    }
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
    const step = (): void => {
      if (!this.#moving || this.#layout === undefined) return;
      const now = ((performance.now() - this.#beganMs) / 1000) * FRAME_RATE_HZ;
      const at = Math.max(0, Math.min(now, this.#layout.totalFrames));
      this.#playhead.style.setProperty("--at", String(at));
      const left = this.#playhead.getBoundingClientRect().left - this.#track.getBoundingClientRect().left;
      if (left > this.#track.clientWidth * 0.8) this.#track.scrollLeft += left - this.#track.clientWidth * 0.8;
      requestAnimationFrame(step);
    };
    this.#track.scrollLeft = 0;
    requestAnimationFrame(step);
  }
}

/** A word that would run into the one before it moves to the lane above. */
function drawWords(layout: TimelineLayout): void {
  const place = byId("words");
  const free = [0, 0];
  const marks = layout.words.map((word) => {
    const mark = make("span", word.text, { at: word.startFrame });
    const lane = word.startFrame >= free[0]! || free[0]! <= free[1]! ? 0 : 1;
    free[lane] = word.startFrame + (word.text.length + 1) * LETTER_FRAMES;
    mark.dataset.lane = String(lane);
    return mark;
  });
  place.replaceChildren(...marks);
}

function figures(layout: TimelineLayout, status: Turn["status"]): Node[] {
  const rate = make("b", `${layout.realisedHz.toFixed(1)} Hz`);
  rate.id = "figure-hz";
  const rest = ` · ${layout.bars.length} tokens · ${layout.secondsShown.toFixed(1)} s`;
  return [rate, document.createTextNode(status === "interrupted" ? `${rest} · interrupted` : rest)];
}
