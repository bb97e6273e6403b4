import { defineConfig, type Plugin } from "vite";
import { workletSource } from "./src/worklets";

const WORKLETS = "assets/worklets.js";

/** The page's content security policy forbids blob: scripts, so the worklets lie beside it. */
const worklets: Plugin = {
  name: "agogic-worklets",
  generateBundle() {
    this.emitFile({ type: "asset", fileName: WORKLETS, source: workletSource() });
  },
  configureServer(server) {
    server.middlewares.use(`/${WORKLETS}`, (_request, response) => {
      response.setHeader("Content-Type", "text/javascript");
      response.end(workletSource());
    });
  },
};

// The built page is committed and served by `agogic serve`, so that nobody needs Node to talk.
export default defineConfig({
  root: "page",
  base: "/",
  plugins: [worklets],
  build: {
    outDir: "../../../agent/web",
    emptyOutDir: true,
    assetsInlineLimit: 0, // data: URLs would break the page's content security policy
    modulePreload: { polyfill: false },
    rollupOptions: {
      output: {
        entryFileNames: "assets/page.js",
        assetFileNames: "assets/[name][extname]",
      },
    },
  },
  server: { proxy: { "/v1": { target: "http://127.0.0.1:8790", ws: true }, "/healthz": "http://127.0.0.1:8790" } },
});
