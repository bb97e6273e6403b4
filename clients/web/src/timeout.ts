/** Like `AbortSignal.timeout`, which not every runtime has. */
export function after(ms: number): AbortSignal {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), ms);
  return controller.signal;
}
