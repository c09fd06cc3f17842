// Puts the page, the runtime, the exported network (model/) and a default clip (clip.mp4) into dist/, a static site.
import { cpSync, existsSync, mkdirSync, rmSync } from "node:fs"

const RUNTIME = ["ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm", "ort-wasm-simd-threaded.asyncify.mjs"]
const MODEL = ["model.onnx", "config.json", "preprocessor_config.json"]

for (const file of MODEL.map((name) => `model/${name}`)) {
  if (!existsSync(file)) {
    console.error(`there is no ${file}: i3dconvert export FILE --hub model --uint8-input --top-k 5`)
    process.exit(1)
  }
}
rmSync("dist", { recursive: true, force: true })
mkdirSync("dist/model", { recursive: true })
cpSync("page", "dist", { recursive: true })
for (const name of RUNTIME) cpSync(`node_modules/onnxruntime-web/dist/${name}`, `dist/ort/${name}`)
cpSync("node_modules/pica/dist/pica.min.mjs", "dist/pica.min.mjs")
for (const name of MODEL) cpSync(`model/${name}`, `dist/model/${name}`)
if (existsSync("clip.mp4")) cpSync("clip.mp4", "dist/clip.mp4")
