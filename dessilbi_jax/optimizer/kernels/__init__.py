"""The step of one leaf in a single pass over memory, written in Pallas.

Not measured on an accelerator yet, therefore behind one seam and off: `choice` says which leaves
it could serve, `layout` how it sees them, `pallas_call` is the kernel.
"""
