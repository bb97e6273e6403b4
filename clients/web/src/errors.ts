/** Why something did not work. `code` is for programs, `message` a sentence for the person in front of the screen. */
export type ErrorCode =
  | "microphone" // refused, missing, or held by another program
  | "unauthorised" // no key, or a wrong one
  | "overloaded" // full or starting: try again
  | "unreachable" // nobody answers, or no path for sound
  | "refused" // the server said no
  | "expired" // the session came to its end by itself
  | "stale" // the server does not know the session that was to go on
  | "lost" // an established connection ended
  | "server" // the server reported an error; the conversation goes on
  | "tool"; // one of your functions threw

export class AgogicError extends Error {
  override readonly name = "AgogicError";

  constructor(
    message: string,
    readonly code: ErrorCode,
    /** The server's own code, event or parameter, where it named one. */
    readonly details: { serverCode?: string; eventId?: string; param?: string } = {},
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}
