const CHECK_MS = 250;
const QUIET_MS = 600; // nothing came for so long: ask
const DEAD_MS = 2000; // nothing came and nobody answered: gone
const ASLEEP_MS = 2000; // checks so far apart mean that the page itself was asleep

/**
 * Notices within three seconds that nobody is at the other end, which sockets alone may take minutes to say.
 *
 * `probe` asks for a sign of life and resolves to whether there was one; it is only called when nothing came by itself.
 */
export class Heartbeat {
  #aliveMs: number;
  #checkedMs: number;
  #asking = false;
  #timer: ReturnType<typeof setInterval> | undefined;

  constructor(
    private readonly probe: () => Promise<boolean>,
    private readonly onDead: () => void,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.#aliveMs = this.#checkedMs = now();
    this.#timer = setInterval(() => this.#check(), CHECK_MS);
  }

  /** Something came from the other end. */
  alive(): void {
    this.#aliveMs = this.now();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #check(): void {
    const now = this.now();
    if (now - this.#checkedMs > ASLEEP_MS) this.#aliveMs = now;
    this.#checkedMs = now;
    const quietMs = now - this.#aliveMs;
    if (quietMs >= DEAD_MS) {
      this.stop();
      this.onDead();
    } else if (quietMs >= QUIET_MS && !this.#asking) {
      this.#asking = true;
      void this.probe()
        .catch(() => false)
        .then((answered) => {
          this.#asking = false;
          if (answered) this.alive();
        });
    }
  }
}
