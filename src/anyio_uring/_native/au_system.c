/* What the system says about itself. Needs no ring. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <liburing.h>

#include "au_ring.h"

#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif

/* linux/stat.h, since Linux 6.1; written out, for the headers may be older than the kernel. */
#define DIOALIGN 0x2000U
#define STATX_SIZE 256
#define MASK_AT 0
#define MEMORY_ALIGN_AT 152
#define OFFSET_ALIGN_AT 156

int au_liburing_version(void)
{
#ifdef IO_URING_VERSION_MAJOR
    return 1000 * IO_URING_VERSION_MAJOR + IO_URING_VERSION_MINOR;
#else
    return 2003; /* _ffi_build.py asks for 2.3, and 2.4 brought the macros */
#endif
}

int au_direct_io_alignment(int fd, uint32_t *memory, uint32_t *offset)
{
    char answer[STATX_SIZE] = {0};
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, DIOALIGN, answer) < 0)
        return errno == ENOSYS ? 0 : -errno;
    uint32_t mask;
    memcpy(&mask, answer + MASK_AT, sizeof(mask));
    if (!(mask & DIOALIGN))
        return 0;
    memcpy(memory, answer + MEMORY_ALIGN_AT, sizeof(*memory));
    memcpy(offset, answer + OFFSET_ALIGN_AT, sizeof(*offset));
    return 1;
}
