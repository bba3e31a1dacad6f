"""The pure core: values and the functions on them.  No input or output lives here, and nothing of trio, pyfuse3 or
libvirt.
"""
