/* What the shim was built with. Needs no ring. */
#include <stdint.h>

#include <liburing.h>

#include "au_ring.h"

int au_liburing_version(void)
{
#ifdef IO_URING_VERSION_MAJOR
    return 1000 * IO_URING_VERSION_MAJOR + IO_URING_VERSION_MINOR;
#else
    return 2003; /* _ffi_build.py asks for 2.3, and 2.4 brought the macros */
#endif
}
