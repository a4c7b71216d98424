'use strict'
// A cell as V8's console takes it: types stripped, `import` as a call that starts from the workspace, no `export`, and
// each `await` at the top such that it ends with the cell. Lines stay where they are.

const { stripTypeScriptTypes } = require('node:module')
const acorn = require('acorn')

const OPTIONS = {
  ecmaVersion: 'latest',
  sourceType: 'module',
  allowAwaitOutsideFunction: true,
  allowHashBang: true,
  allowSuperOutsideMethod: true,
  allowImportExportEverywhere: false,
  checkPrivateFields: false
}

// What we cannot read is left to V8, which knows best why.
function translate (code) {
  const plain = attempt(() => parse(code))
  if (plain && !plain.looksGeneric) return rewrite(code, plain.edits)
  const typed = withoutTypes(code)
  if (typed) return rewrite(typed.code, typed.found.edits)
  return plain ? rewrite(code, plain.edits) : code
}

function attempt (action) {
  try {
    return action()
  } catch {
    return null
  }
}

// First in place; what cannot be left out like that (enums, `<T>value`) is written anew. Null for what is no TypeScript.
function withoutTypes (code) {
  for (const mode of ['strip', 'transform']) {
    const stripped = attempt(() => stripTypeScriptTypes(code, { mode }))
    const found = stripped === null ? null : attempt(() => parse(stripped))
    if (found) return { code: stripped, found }
  }
  return null
}

// Raises acorn's SyntaxError.
function parse (code) {
  // REPL code declares again what earlier lines of it have declared, as one cell may not: that is V8's to say.
  const tree = acorn.parse(code, OPTIONS)
  const edits = []
  const found = { edits, looksGeneric: false }
  for (const node of tree.body) {
    const edit = STATEMENTS[node.type]
    if (edit) edits.push(...edit(node, code))
  }
  walk(tree, (node, isTop) => {
    if (node.type === 'ImportExpression') edits.push([node.start, node.start + 'import'.length, '__import__'])
    else if (node.type === 'MetaProperty' && node.meta.name === 'import') edits.push([node.start, node.end, '__meta__'])
    else if (node.type === 'AwaitExpression' && isTop) edits.push(...wrap(node.argument, '__await__'))
    else if (node.type === 'ForOfStatement' && node.await && isTop) edits.push(...wrap(node.right, '__iterate__'))
    else if (isGeneric(node, code)) found.looksGeneric = true
  })
  return found
}

function wrap (node, name) {
  return [[node.start, node.start, `${name}((`], [node.end, node.end, '))']]
}

// `f<T>(x)`: two comparisons in JavaScript, which nobody means.
function isGeneric (node, code) {
  return node.type === 'BinaryExpression' && node.operator === '>' && code[node.end - 1] === ')' &&
    node.left.type === 'BinaryExpression' && node.left.operator === '<' && code[node.left.end] === '>' &&
    code[node.left.end + 1] === '('
}

const STATEMENTS = {
  ImportDeclaration: (node, code) => [[node.start, node.end, importing(node, code)]],
  ExportNamedDeclaration: node => node.declaration
    ? [[node.start, node.declaration.start, '']]
    : [[node.start, node.end, node.source ? `await __await__(__import__(${node.source.raw}));` : '']],
  ExportDefaultDeclaration: (node, code) => {
    const named = node.declaration.id || !/Declaration$/.test(node.declaration.type)
    const paren = named ? '' : '('
    const end = named ? [] : [[node.declaration.end, node.declaration.end, ')']]
    return [[node.start, node.declaration.start, paren], ...end]
  },
  ExportAllDeclaration: node => [[node.start, node.end, `await __await__(__import__(${node.source.raw}));`]]
}

function importing (node, code) {
  const names = []
  const parts = []
  let space = ''
  for (const specifier of node.specifiers) {
    const local = specifier.local.name
    if (specifier.type === 'ImportNamespaceSpecifier') {
      space = local
    } else {
      const name = specifier.type === 'ImportDefaultSpecifier'
        ? 'default'
        : specifier.imported.name ?? specifier.imported.value
      names.push(name)
      parts.push(`${JSON.stringify(name)}: ${local}`)
    }
  }
  const attributes = (node.attributes ?? []).map(one => `${code.slice(one.key.start, one.key.end)}: ${one.value.raw}`)
  const options = attributes.length ? `{ with: { ${attributes.join(', ')} } }` : 'undefined'
  const call = `await __await__(__import__(${node.source.raw}, ${options}, ${JSON.stringify(names)}))`
  const lines = '\n'.repeat(code.slice(node.start, node.end).split('\n').length - 1)
  if (space && parts.length) return `const ${space} = ${call}, { ${parts.join(', ')} } = ${space};${lines}`
  if (space) return `const ${space} = ${call};${lines}`
  return parts.length ? `const { ${parts.join(', ')} } = ${call};${lines}` : `void (${call});${lines}`
}

const OWN_AWAIT = /^(Function|Arrow|Class|StaticBlock|PropertyDefinition)/

// `visit` is also told whether a node stands outside of all functions.
function walk (tree, visit) {
  const waiting = [[tree, true]]
  while (waiting.length) {
    const [node, isTop] = waiting.pop()
    visit(node, isTop)
    const below = isTop && !OWN_AWAIT.test(node.type)
    for (const value of Object.values(node)) {
      for (const child of Array.isArray(value) ? value : [value]) {
        if (child && typeof child.type === 'string') waiting.push([child, below])
      }
    }
  }
}

function rewrite (code, edits) {
  let text = code
  for (const [start, end, replacement] of edits.sort((a, b) => b[0] - a[0] || b[1] - a[1])) {
    text = text.slice(0, start) + replacement + text.slice(end)
  }
  return text
}

// Whether a client that was told Enter should run it or go on with another line.
function completeness (code) {
  const failure = failureOf(code)
  if (!failure) return 'complete'
  if (withoutTypes(code)) return 'complete'
  const atEnd = failure.pos >= code.trimEnd().length || /^Unterminated (template|comment)/.test(failure.message)
  return atEnd ? 'incomplete' : 'invalid'
}

function failureOf (code) {
  try {
    acorn.parse(code, OPTIONS)
    return null
  } catch (error) {
    return error
  }
}

module.exports = { translate, completeness }
