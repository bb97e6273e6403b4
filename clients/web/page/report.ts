import { type TurnReport, waterfall } from "../src";
import { byId, make } from "./dom";
import { explainRate } from "./timeline";

const WORK: Record<string, string> = {
  encode_ms: "hearing",
  prefill_ms: "reading",
  thinker_ms: "choosing words",
  talker_ms: "choosing tokens",
  flow_ms: "shaping sound",
  vocoder_ms: "making samples",
};

/** Rates and times of the last answer, in words. */
export function showReport(report: TurnReport | undefined): void {
  if (report === undefined) return;
  explain("heard-why", explainRate(report.input, "heard"));
  explain("said-why", explainRate(report.output, "said"));
  const steps = waterfall(report.timing);
  const last = steps.at(-1);
  const totalMs = last === undefined ? 0 : last.startMs + last.durationMs;
  byId("timing-total").textContent = `${totalMs} ms`;
  byId("waterfall").replaceChildren(
    ...steps.map((step) => {
      const row = make("li");
      if (step.startMs === 0 && step.name.startsWith("waiting")) row.dataset.wait = "";
      const lane = make("span");
      lane.className = "lane";
      lane.append(make("i", "", { at: (100 * step.startMs) / totalMs, for: (100 * step.durationMs) / totalMs }));
      const ms = make("span", `${step.durationMs} ms`);
      ms.className = "ms";
      row.append(make("span", step.name), lane, ms);
      return row;
    }),
  );
  const stages = Object.entries(report.timing.stages ?? {}).filter(([, ms]) => ms >= 0.5);
  byId("stages-block").hidden = stages.length === 0;
  byId("stages").replaceChildren(
    ...stages.map(([name, ms]) => {
      const pair = make("div");
      pair.append(make("dt", WORK[name] ?? name.replace(/_ms$/, "")), make("dd", `${Math.round(ms)} ms`));
      return pair;
    }),
  );
}

function explain(id: string, sentence: string): void {
  if (sentence) byId(id).textContent = sentence;
}
