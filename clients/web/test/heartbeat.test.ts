import { beforeEach, expect, it, vi } from "vitest";
import { Heartbeat } from "../src/heartbeat";

beforeEach(() => void vi.useFakeTimers());

function setUp(answer: () => Promise<boolean>) {
  const dead = vi.fn();
  const probe = vi.fn(answer);
  return { heart: new Heartbeat(probe, dead, () => Date.now()), dead, probe };
}

it("notices within three seconds that nobody answers, once", async () => {
  for (const answer of [() => new Promise<boolean>(() => undefined), async () => false, async () => { throw new Error("refused"); }]) {
    const { dead } = setUp(answer);
    await vi.advanceTimersByTimeAsync(3000);
    expect(dead).toHaveBeenCalledOnce();
    await vi.advanceTimersByTimeAsync(9000);
    expect(dead).toHaveBeenCalledOnce();
  }
});

it("lives as long as there is an answer, and asks only where nothing comes by itself", async () => {
  const { heart, dead, probe } = setUp(async () => true);
  for (let second = 0; second < 10; second += 0.5) {
    heart.alive();
    await vi.advanceTimersByTimeAsync(500);
  }
  expect(probe).not.toHaveBeenCalled();
  await vi.advanceTimersByTimeAsync(20_000);
  expect(probe).toHaveBeenCalled();
  expect(dead).not.toHaveBeenCalled();
});

it("does not take its own sleep for the other's death", async () => {
  const { dead } = setUp(async () => true);
  vi.setSystemTime(Date.now() + 3_600_000); // the laptop was closed
  await vi.advanceTimersByTimeAsync(1500);
  expect(dead).not.toHaveBeenCalled();
});

it("rests when it is stopped", async () => {
  const { heart, dead } = setUp(async () => false);
  heart.stop();
  await vi.advanceTimersByTimeAsync(10_000);
  expect(dead).not.toHaveBeenCalled();
});
