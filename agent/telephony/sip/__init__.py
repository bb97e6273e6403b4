"""SIP in RFC 3261's own terms: messages, transactions, dialogs, a user agent. No socket, no clock of its own."""
