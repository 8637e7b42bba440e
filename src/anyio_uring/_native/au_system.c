/* What the shim was built with, and what a descriptor is. Needs no ring. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/stat.h>

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

int au_file_type(int fd)
{
    struct statx known;
    struct stat found;

    if (fd < 0) /* AT_FDCWD is a number, too */
        return 0;
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &known) == 0)
        return known.stx_mode & S_IFMT;
    /* A filter may forbid statx(2) and allow fstat(2). */
    if ((errno == ENOSYS || errno == EPERM) && fstat(fd, &found) == 0)
        return found.st_mode & S_IFMT;
    return 0;
}
