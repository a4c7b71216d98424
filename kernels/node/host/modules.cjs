'use strict'
// `require` and `import` as a script in the workspace has them: its own packages first, then those in /node_modules.

const { createRequire, isBuiltin } = require('node:module')
const path = require('node:path')
const { pathToFileURL } = require('node:url')
const vm = require('node:vm')

function install () {
  const file = path.join(process.cwd(), 'cell.js')
  const load = new vm.Script('(specifier, options) => import(specifier, options)', {
    filename: file,
    importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER
  }).runInThisContext()
  const require = createRequire(file)
  const module = { exports: {}, filename: file, id: '.', paths: require.resolve.paths('x') }
  const meta = { url: String(pathToFileURL(file)), filename: file, dirname: process.cwd(), main: true, resolve: resolver(require) }
  const importing = async (specifier, options, names = []) => {
    const found = await load(specifier, options)
    const missing = names.filter(name => !(name in found))
    if (missing.length === 0) return found
    // Of a CommonJS module Node.js knows the names that it can read off its text, as bundlers do not put up with.
    const whole = found.default ?? {}
    const absent = missing.find(name => whole[name] === undefined)
    if (absent === undefined) return { ...found, ...Object.fromEntries(missing.map(name => [name, whole[name]])) }
    throw new SyntaxError(`The requested module '${specifier}' does not provide an export named '${absent}'`)
  }
  hide({ require, module, exports: module.exports, __filename: file, __dirname: process.cwd() })
  fix({ __import__: importing, __meta__: meta })
}

function resolver (require) {
  return specifier => isBuiltin(specifier) || /^[a-z]+:/.test(specifier)
    ? specifier
    : String(pathToFileURL(require.resolve(specifier)))
}

// Globals that cells may declare again and that no listing of globals shows.
function hide (values) {
  for (const [name, value] of Object.entries(values)) {
    Object.defineProperty(globalThis, name, { configurable: true, writable: true, enumerable: false, value })
  }
}

// What cells are rewritten to call, see source.cjs: nothing of theirs changes it.
function fix (values) {
  for (const [name, value] of Object.entries(values)) Object.defineProperty(globalThis, name, { value })
}

module.exports = { install, hide, fix }
