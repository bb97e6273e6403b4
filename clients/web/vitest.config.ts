import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts", "test/**/*.test.tsx"],
    coverage: { include: ["src/**"], exclude: ["src/index.ts"], reporter: ["text-summary"], thresholds: { lines: 90 } },
  },
});
