import * as ort from "onnxruntime-web"
import pica from "pica"

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href
ort.env.logLevel = "error"
if (!globalThis.crossOriginIsolated) ort.env.wasm.numThreads = 1

/** A browser's own resizing differs from that of training by more than the network takes lightly; pica's does not. */
const resizer = pica()
const FILTERS = { 2: "hamming", 3: "lanczos2" } // nearest to bilinear and bicubic, by their numbers in Pillow

const canvasOf = (width, height) => Object.assign(document.createElement("canvas"), { width, height })
const at = (id) => document.getElementById(id)
const json = async (path) => (await fetch(path)).json()

/** The network that `i3dconvert export --hub model --uint8-input --top-k 5` wrote. */
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

/** `count` frames from begin to end, resized and cropped as the 2D network was trained: RGB, (count, size, size, 3). */
async function sample(video, count, { size: { shortest_edge: edge }, crop_size: { height: size }, resample }) {
  const clip = new Uint8Array(count * size * size * 3)
  const strip = []
  for (let index = 0; index < count; index++) {
    const seeked = once(video, "seeked")
    video.currentTime = (video.duration * (index + 0.5)) / count
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
  return { clip, strip, shape: [1, count, size, size, 3] }
}

/** The best classes of a clip, `[name, probability]`, and the milliseconds that they took. */
async function classify({ session, config }, { clip, shape }) {
  const begin = performance.now()
  const { scores, classes } = await session.run({ [config.onnx.input]: new ort.Tensor("uint8", clip, shape) })
  const took = performance.now() - begin
  return { best: Array.from(classes.data, (index, at) => [config.id2label[Number(index)], scores.data[at]]), took }
}

function show({ best, took }, { strip }, { provider }) {
  at("classes").replaceChildren(
    ...best.map(([name, score]) => {
      const row = document.createElement("li")
      row.style.setProperty("--share", `${(100 * score).toFixed(1)}%`)
      row.append(name, Object.assign(document.createElement("span"), { textContent: score.toFixed(3) }))
      return row
    }),
  )
  at("frames").replaceChildren(...strip)
  at("status").textContent = `${took.toFixed(0)} ms a clip of ${strip.length} frames (${provider})`
}

/** Runs one thing after the other, and says in the page what went wrong. */
let last = Promise.resolve()
const inTurn = (job) => (last = last.then(job).catch((error) => {
  at("status").textContent = error.message
  at("status").classList.add("wrong")
}))

async function look(network, source) {
  const video = at("video")
  at("status").classList.remove("wrong")
  at("status").textContent = "Looking …"
  const ready = once(video, "loadeddata")
  video.src = source
  await ready
  const frames = await sample(video, network.config.num_frames, network.preprocessing)
  show(await classify(network, frames), frames, network)
}

inTurn(async () => {
  const network = await load()
  const { architecture, num_frames: count } = network.config
  at("network").textContent = `${architecture}, inflated to clips of ${count} frames, runs by ${network.provider}.`
  at("file").addEventListener("change", ({ target }) => {
    if (target.files.length) inTurn(() => look(network, URL.createObjectURL(target.files[0])))
  })
  const given = await fetch("clip.mp4") // as a whole: to seek in an address takes a server that knows ranges
  if (given.ok) await look(network, URL.createObjectURL(await given.blob()))
})
