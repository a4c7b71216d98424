// Executed once, silently, before a session gets the kernel: what its first cells would otherwise wait for.
{
  const typed: number = 1
  console.table([{ typed }])
  await import('node:fs/promises')
  class Rehearsed {}
  require('node:util').inspect([new Rehearsed(), new Map([[1, new Error('none')]])])
}
