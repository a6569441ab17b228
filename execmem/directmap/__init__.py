"""directmap: what executable memory does to the kernel's direct map: read, recorded, simulated, measured.

The kernel maps all RAM once more with the largest pages it can. A change of permissions of a part of such a page splits
it, for good. Nothing here needs the compiled core.
"""
