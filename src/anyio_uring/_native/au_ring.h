/* What Python sees of the shim.
 *
 * Declared once: _ffi_build.py hands this very text to cffi, and au_ring.c
 * includes it.  So it holds declarations only, no preprocessor lines.
 * Every function returns >= 0, or -errno.
 */

/* One ring and the pages that belong to it; opaque to Python. */
typedef struct au_ring au_ring;

/* One row of work: the fields of a submission queue entry that this library uses. */
typedef struct {
    uint64_t user_data;
    uint64_t address;
    int64_t offset;
    uint32_t length;
    int32_t fd;
    uint32_t op_flags;
    uint8_t opcode;
    uint8_t sqe_flags;
    uint16_t buf_index;
} au_row;

/* One completion. 64 bits each, so that cffi unpacks an array of them in one go. */
typedef struct {
    uint64_t user_data;
    int64_t res;
} au_completion;

/* One iovec, for readv and writev. */
typedef struct {
    uint64_t address;
    uint64_t length;
} au_iovec;

/* What the ring says about itself. Lives in a page that a forked child sees as zeros. */
typedef struct {
    uint32_t owned;        /* 1 in the process that opened the ring, 0 in its children */
    uint32_t setup_flags;  /* IORING_SETUP_* in force */
    uint32_t features;     /* IORING_FEAT_* of the kernel */
    uint32_t sq_entries;
    uint32_t cq_entries;
    uint32_t consumed;     /* rows that the last au_turn() moved into the SQ */
    uint32_t unsubmitted;  /* entries that need another turn: not taken by the kernel, or (IOPOLL) not done */
    uint32_t in_flight;    /* entries in the SQ or the kernel that have no completion yet */
    uint64_t enters;       /* calls of io_uring_enter(2) */
    uint64_t overflows;    /* times the completion queue was found overflown */
} au_state;

/* The last two are for IORING_SETUP_SQPOLL and SQ_AFF alone. */
int au_open(au_ring **out, uint32_t entries, uint32_t cq_entries, uint32_t setup_flags,
            uint32_t poller_idle_ms, uint32_t poller_cpu);
au_state *au_get_state(au_ring *ring);
int au_get_fd(au_ring *ring);
int au_get_opcodes(au_ring *ring, uint8_t *supported, uint32_t count);
int au_limit_workers(au_ring *ring, uint32_t bounded, uint32_t unbounded);
/* Of a ring opened with R_DISABLED: allow these opcodes and SQE flags, and of registrations the updates of the
 * two tables; then enable it. */
int au_restrict(au_ring *ring, const uint8_t *opcodes, uint32_t count, uint8_t sqe_flags);
/* A table of registered buffers, all empty (Linux 5.19); and what one entry is: no address empties it. */
int au_make_buffer_table(au_ring *ring, uint32_t count);
int au_set_buffer(au_ring *ring, uint32_t index, uintptr_t address, uint64_t length);
/* The same of registered files; -1 empties a slot. */
int au_make_file_table(au_ring *ring, uint32_t count);
int au_set_file(au_ring *ring, uint32_t slot, int fd);
/* Enter the kernel for nothing but to learn whether it may be entered. */
int au_enter(au_ring *ring);
/* SQPOLL: whether the kernel's poller sleeps, so that the next submission has to wake it. */
int au_poller_sleeps(au_ring *ring);
/* `packed` holds au_rows: cffi passes a bytes object to a char pointer as it is, without a copy. */
int au_turn(au_ring *ring, const char *packed, uint32_t count,
            au_completion *out, uint32_t capacity);
/* Put new bytes objects into a list of `count` items (its id()), and say where their content is; nobody
 * else has seen them, so C may fill them.  Lengths are 2 or more: shorter ones may be shared. */
int au_new_bytes(uintptr_t list, const char *lengths, char *addresses, uint32_t count);
/* Say where the memory of a list's items (its id()) is, and how long it is. -1 if one is read-only or
 * not contiguous. The caller holds an export of each. */
int au_find_memory(uintptr_t list, char *addresses, char *lengths, uint32_t count);
/* The address of a Python object's memory, which somebody holds an export of; 0 if it has none. */
uint64_t au_address(uintptr_t object);
/* Rows of a batch from its columns: packed[i] is the row of user_data + i * member. */
int au_pack(char *packed, uint32_t count, uint64_t user_data, uint64_t member, uint8_t opcode,
            uint8_t sqe_flags, uint16_t buf_index, uint32_t op_flags, const char *fds, const char *lengths, const char *offsets,
            const char *addresses);
/* Write the results of this operation's members to results[member], first set to INT32_MIN, and
 * report how many have come instead of each. NULL ends that. */
int au_gather(au_ring *ring, uint64_t user_data, int32_t *results, uint32_t count);
/* Fill `memory` as far as that needs no waiting. Needs no ring; -EAGAIN if only a part is there. */
int64_t au_read_now(int fd, char *memory, uint32_t length, int64_t offset);
int au_close(au_ring *ring);

/* The liburing that this was built with: 1000 * major + minor. */
int au_liburing_version(void);
/* The type bits of a descriptor's file (S_IFREG ...), as the kernel has it in memory: no server is asked, as
 * fstat(2) would on FUSE and NFS. 0 if it is no descriptor. */
int au_file_type(int fd);
