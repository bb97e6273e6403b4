import { defineConfig } from "vite";

// The built page is committed and served by `agogic serve`, so that nobody needs Node to talk.
export default defineConfig({
  base: "/",
  build: {
    outDir: "../../agent/web",
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
  server: { proxy: { "/v1": { target: "http://127.0.0.1:8790", ws: true } } },
});
