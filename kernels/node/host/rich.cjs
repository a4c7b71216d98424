'use strict'
// Values as MIME bundles, and what the user shows by `display` (`$$` is another name for it).

const util = require('node:util')

const DISPLAY = Symbol.for('Jupyter.display') // as Deno has it
const TEXT = { depth: 6, maxArrayLength: 1000, maxStringLength: 1_000_000, breakLength: 100 }
const MIMES = {
  text: 'text/plain',
  html: 'text/html',
  markdown: 'text/markdown',
  latex: 'text/latex',
  svg: 'image/svg+xml',
  png: 'image/png',
  jpeg: 'image/jpeg',
  gif: 'image/gif',
  json: 'application/json'
}
const SIGNATURES = [
  ['image/png', Buffer.from('\x89PNG\r\n\x1a\n', 'latin1')],
  ['image/jpeg', Buffer.from('\xff\xd8\xff', 'latin1')],
  ['image/gif', Buffer.from('GIF8', 'latin1')]
]

// The text of a value that is not shown otherwise.
function inspect (value) {
  try {
    // A string as one literal, however long.
    return util.inspect(value, typeof value === 'string' ? { ...TEXT, breakLength: Infinity } : TEXT)
  } catch (error) {
    return `[it cannot be shown: ${util.inspect(error).split('\n')[0]}]`
  }
}

// May be a promise: a value's own way to show itself may be.
function bundleOf (value) {
  const show = hasProperties(value) ? value[DISPLAY] : undefined
  if (typeof show === 'function') {
    const shown = show.call(value)
    return util.types.isPromise(shown) ? shown.then(checked) : checked(shown)
  }
  const image = imageType(value)
  return image ? { [image]: base64(value), 'text/plain': `<${image}, ${value.length} bytes>` } : { 'text/plain': inspect(value) }
}

// That can be asked for: a proxy would run code of the user's.
function hasProperties (value) {
  return value !== null && ['object', 'function'].includes(typeof value) && !util.types.isProxy(value)
}

function imageType (value) {
  if (!(value instanceof Uint8Array)) return undefined
  return SIGNATURES.find(([, start]) => start.equals(value.subarray(0, start.length)))?.[0]
}

function base64 (data) {
  if (typeof data === 'string') return data.replace(/^data:[^,]*,/, '')
  return Buffer.from(data.buffer ?? data, data.byteOffset ?? 0, data.byteLength).toString('base64')
}

function checked (bundle) {
  if (bundle === null || typeof bundle !== 'object') throw new TypeError('a MIME bundle is an object: { "text/html": … }')
  const data = {}
  for (const [mime, value] of Object.entries(bundle)) {
    const isText = typeof value === 'string' || mime === 'application/json' || mime.endsWith('+json')
    data[mime] = isText ? value : value instanceof Uint8Array || value instanceof ArrayBuffer ? base64(value) : String(value)
  }
  return data
}

// `send({ type, data, metadata, transient })` is what it does when it is called.
function makeDisplay (send) {
  const show = (data, { id, metadata = {}, update = false } = {}) => {
    const transient = id === undefined ? {} : { display_id: String(id) }
    send({ type: update ? 'update_display_data' : 'display_data', data, metadata, transient })
  }
  const display = (value, options = {}) => {
    const data = options.raw ? checked(value) : bundleOf(value)
    return util.types.isPromise(data) ? data.then(known => show(known, options)) : show(data, options)
  }
  for (const [name, mime] of Object.entries(MIMES)) {
    display[name] = (value, options) => {
      const isImage = /^image\/(?!svg)/.test(mime)
      const data = mime === 'application/json' ? value : isImage ? base64(value) : String(value)
      show(name === 'json' ? { [mime]: data, 'text/plain': inspect(value) } : { [mime]: data }, options)
    }
  }
  display.mime = (bundle, options) => show(checked(bundle), options)
  display.update = (id, value, options = {}) => display(value, { ...options, id, update: true })
  display.clear = (wait = false) => send({ type: 'clear_output', wait })
  return display
}

module.exports = { DISPLAY, bundleOf, inspect, makeDisplay }
