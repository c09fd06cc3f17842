import * as ort from "onnxruntime-web"
import pica from "pica"

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href
ort.env.logLevel = "error"
if (!globalThis.crossOriginIsolated) ort.env.wasm.numThreads = 1

/** A browser's own resizing differs from that of training by more than the network takes lightly; pica's does not. */
const resizer = pica()
const RATE = 8 // frames a second that a stream sees
const FILTERS = { 2: "hamming", 3: "lanczos2" } // nearest to bilinear and bicubic, by their numbers in Pillow

const canvasOf = (width, height) => Object.assign(document.createElement("canvas"), { width, height })
const at = (id) => document.getElementById(id)
const json = async (path) => (await fetch(path)).json()

/** The network that `i3dconvert export --hub model --uint8-input --top-k 5` wrote, with or without `--stream`. */
async function load() {
  const [config, preprocessing] = await Promise.all([json("model/config.json"), json("model/preprocessor_config.json")])
  const gpu = await globalThis.navigator.gpu?.requestAdapter().catch(() => null)
  for (const provider of gpu ? ["webgpu", "wasm"] : ["wasm"]) {
    try {
      const options = { executionProviders: [provider], logSeverityLevel: 3 }
      const session = await ort.InferenceSession.create("model/model.onnx", options)
      return { config, preprocessing, session, provider }
    } catch (error) {
      if (provider === "wasm") throw error
    }
  }
}

const once = (target, event) =>
  new Promise((resolve, reject) => {
    target.addEventListener(event, resolve, { once: true })
    target.addEventListener("error", () => reject(new Error("this browser can't play that file")), { once: true })
  })

/** Width and height in the pixels that were coded, square or not: so do the decoders that networks are trained with. */
function coded(video) {
  if (!globalThis.VideoFrame) return [video.videoWidth, video.videoHeight]
  const frame = new VideoFrame(video)
  const { width, height } = frame.visibleRect
  frame.close()
  return [width, height]
}

/** The frames at these seconds, resized and cropped as the 2D network was trained: RGB, (frames, size, size, 3). */
async function sample(video, seconds, { size: { shortest_edge: edge }, crop_size: { height: size }, resample }) {
  const clip = new Uint8Array(seconds.length * size * size * 3)
  const strip = []
  for (const [index, second] of seconds.entries()) {
    const seeked = once(video, "seeked")
    video.currentTime = second
    await seeked
    const across = coded(video)
    const [width, height] = across.map((pixels) => Math.floor((pixels * edge) / Math.min(...across)))
    const frame = canvasOf(...across)
    frame.getContext("2d").drawImage(video, 0, 0, ...across)
    const resized = await resizer.resize(frame, canvasOf(width, height), { filter: FILTERS[resample] })
    const canvas = canvasOf(size, size)
    const context = canvas.getContext("2d", { willReadFrequently: true })
    context.drawImage(resized, Math.round((size - width) / 2), Math.round((size - height) / 2))
    const { data } = context.getImageData(0, 0, size, size)
    for (let pixel = 0, to = index * size * size * 3; pixel < data.length; pixel += 4) {
      clip[to++] = data[pixel]
      clip[to++] = data[pixel + 1]
      clip[to++] = data[pixel + 2]
    }
    strip.push(canvas)
  }
  return { clip, strip, shape: [1, seconds.length, size, size, 3] }
}

/** The state of a stream before its first step: zeros. A network of whole clips has none. */
const start = ({ config }) => Object.fromEntries((config.onnx.stream?.state ?? []).map(({ input, shape }) =>
  [input, new ort.Tensor("float32", new Float32Array(shape.reduce((a, b) => a * b, 1)), [1, ...shape])]))

/** The best classes, `[name, probability]`, the milliseconds that they took, and the next state. */
async function classify({ session, config }, { clip, shape }, state) {
  const begin = performance.now()
  const results = await session.run({ [config.onnx.input]: new ort.Tensor("uint8", clip, shape), ...state })
  const took = performance.now() - begin
  const { scores, classes } = results
  const best = Array.from(classes.data, (index, at) => [config.id2label[Number(index)], scores.data[at]])
  const kept = (config.onnx.stream?.state ?? []).map(({ input, output }) => [input, results[output]])
  return { best, took, state: Object.fromEntries(kept) }
}

function show({ best, took }, { strip }, { provider }, what) {
  at("classes").replaceChildren(
    ...best.map(([name, score]) => {
      const row = document.createElement("li")
      row.style.setProperty("--share", `${(100 * score).toFixed(1)}%`)
      row.append(name, Object.assign(document.createElement("span"), { textContent: score.toFixed(3) }))
      return row
    }),
  )
  at("frames").replaceChildren(...strip)
  at("status").textContent = `${took.toFixed(0)} ms ${what} (${provider})`
}

/** Runs one thing after the other, and says in the page what went wrong. A stream ends when another video waits. */
let last = Promise.resolve()
let waiting = 0
const inTurn = (job) => {
  waiting++
  last = last.then(() => (waiting--, job())).catch((error) => {
    at("status").textContent = error.message
    at("status").classList.add("wrong")
  })
}

async function look(network, source) {
  const video = at("video")
  at("status").classList.remove("wrong")
  at("status").textContent = "Looking …"
  const ready = once(video, "loadeddata")
  video.src = source
  await ready
  if (network.config.onnx.stream) return follow(network, video)
  const count = network.config.num_frames
  const seconds = Array.from({ length: count }, (_, index) => (video.duration * (index + 0.5)) / count)
  const frames = await sample(video, seconds, network.preprocessing)
  show(await classify(network, frames), frames, network, `a clip of ${count} frames`)
}

/** Runs a stream on a video from begin to end, and shows the mean over the video so far after each step. */
async function follow(network, video) {
  const { frames: count, delay } = network.config.onnx.stream
  const steps = Math.floor((video.duration * RATE) / count)
  let state = start(network)
  for (let step = 0; step < steps && !waiting; step++) {
    const seconds = Array.from({ length: count }, (_, index) => (step * count + index + 0.5) / RATE)
    const frames = await sample(video, seconds, network.preprocessing)
    const found = await classify(network, frames, state)
    state = found.state
    if (step >= delay) show(found, frames, network, `a step, ${(step + 1) * count} frames seen`)
  }
  if (steps <= delay) throw new Error(`a stream needs more than ${delay} steps of ${count} frames; the video has ${steps}`)
}

inTurn(async () => {
  const network = await load()
  const { architecture, num_frames: count, onnx } = network.config
  const way = onnx.stream ? `a stream of ${onnx.stream.frames}-frame steps` : `clips of ${count} frames`
  at("network").textContent = `${architecture}, inflated to ${way}, runs by ${network.provider}.`
  at("file").addEventListener("change", ({ target }) => {
    if (target.files.length) inTurn(() => look(network, URL.createObjectURL(target.files[0])))
  })
  const given = await fetch("clip.mp4") // as a whole: to seek in an address takes a server that knows ranges
  if (given.ok) await look(network, URL.createObjectURL(await given.blob()))
})
