/* The shim over liburing: open, turn, close.
 *
 * It knows rows and completions, nothing of Python, buffers' owners or event
 * loops.  It allocates when a ring is opened and never per operation.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <liburing.h>

#include "au_ring.h"

/* _driver.py: user data is [cancel 1][generation 22][member 24][slot 16]. */
#define SLOT_MASK 0xffffULL
#define MEMBER_SHIFT 16
#define MEMBER_MASK (0xffffffULL << MEMBER_SHIFT)

/* Where an operation's results go; user_data is its first member's. */
struct gathering {
    int32_t *results;
    uint64_t user_data;
    uint32_t count;
};

struct au_ring {
    struct io_uring uring;
    au_state *state;
    struct gathering *gatherings; /* [slot] */
};

static void release(au_ring *ring)
{
    free(ring->gatherings);
    if (ring->state != NULL)
        munmap(ring->state, sizeof(au_state));
    free(ring);
}

int au_open(au_ring **out, uint32_t entries, uint32_t cq_entries, uint32_t setup_flags,
            uint32_t poller_idle_ms, uint32_t poller_cpu)
{
    au_ring *ring = calloc(1, sizeof(*ring));
    if (ring == NULL)
        return -ENOMEM;

    void *page = mmap(NULL, sizeof(au_state), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        release(ring);
        return -ENOMEM;
    }
    ring->state = page;
    /* C12: a child must find `owned` zero before it touches memory of the ring. */
    if (madvise(page, sizeof(au_state), MADV_WIPEONFORK) < 0) {
        int error = errno;
        release(ring);
        return -error;
    }

    struct io_uring_params params;
    memset(&params, 0, sizeof(params));
    params.flags = setup_flags | IORING_SETUP_CQSIZE;
    params.cq_entries = cq_entries;
    params.sq_thread_idle = poller_idle_ms;
    params.sq_thread_cpu = poller_cpu;
    int ret = io_uring_queue_init_params(entries, &ring->uring, &params);
    if (ret < 0) {
        release(ring);
        return ret;
    }
    ret = io_uring_ring_dontfork(&ring->uring);
    if (ret < 0) {
        io_uring_queue_exit(&ring->uring);
        release(ring);
        return ret;
    }

    /* Slots are as many as operations in flight, at most. */
    ring->gatherings = calloc(params.sq_entries, sizeof(*ring->gatherings));
    if (ring->gatherings == NULL) {
        io_uring_queue_exit(&ring->uring);
        release(ring);
        return -ENOMEM;
    }

    ring->state->owned = 1;
    ring->state->setup_flags = params.flags;
    ring->state->features = params.features;
    ring->state->sq_entries = params.sq_entries;
    ring->state->cq_entries = params.cq_entries;
    *out = ring;
    return 0;
}

au_state *au_get_state(au_ring *ring)
{
    return ring->state;
}

int au_get_fd(au_ring *ring)
{
    return ring->uring.ring_fd;
}

int au_get_opcodes(au_ring *ring, uint8_t *supported, uint32_t count)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(&ring->uring);
    if (probe == NULL)
        return -EINVAL;
    for (uint32_t opcode = 0; opcode < count; opcode++)
        supported[opcode] = (uint8_t)io_uring_opcode_supported(probe, (int)opcode);
    io_uring_free_probe(probe);
    return 0;
}

int au_limit_workers(au_ring *ring, uint32_t bounded, uint32_t unbounded)
{
    unsigned int values[2] = {bounded, unbounded};
    return io_uring_register_iowq_max_workers(&ring->uring, values);
}

int au_restrict(au_ring *ring, const uint8_t *opcodes, uint32_t count, uint8_t sqe_flags)
{
    /* What registered buffers and files need once the ring is enabled: their tables are made before. */
    const uint8_t registrations[] = {IORING_REGISTER_BUFFERS_UPDATE, IORING_REGISTER_FILES_UPDATE};
    struct io_uring_restriction allowed[IORING_OP_LAST + 1 + sizeof(registrations)];
    if (count > IORING_OP_LAST)
        return -EINVAL;
    memset(allowed, 0, sizeof(allowed));
    for (uint32_t i = 0; i < count; i++) {
        allowed[i].opcode = IORING_RESTRICTION_SQE_OP;
        allowed[i].sqe_op = opcodes[i];
    }
    allowed[count].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    allowed[count++].sqe_flags = sqe_flags;
    for (size_t i = 0; i < sizeof(registrations); i++) {
        allowed[count].opcode = IORING_RESTRICTION_REGISTER_OP;
        allowed[count++].register_op = registrations[i];
    }
    /* liburing 2.3 declares functions for the two and does not export them. */
    unsigned fd = (unsigned)ring->uring.ring_fd;
    int ret = io_uring_register(fd, IORING_REGISTER_RESTRICTIONS, allowed, count);
    return ret < 0 ? ret : io_uring_register(fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

/* Not liburing's functions for it: some raise RLIMIT_NOFILE for the whole process. */
static int make_table(au_ring *ring, unsigned what, uint32_t count)
{
    struct io_uring_rsrc_register table;
    memset(&table, 0, sizeof(table));
    table.nr = count;
    table.flags = IORING_RSRC_REGISTER_SPARSE;
    return io_uring_register((unsigned)ring->uring.ring_fd, what, &table, sizeof(table));
}

int au_make_buffer_table(au_ring *ring, uint32_t count)
{
    return make_table(ring, IORING_REGISTER_BUFFERS2, count);
}

int au_set_buffer(au_ring *ring, uint32_t index, uintptr_t address, uint64_t length)
{
    struct iovec memory = {(void *)address, length};
    __u64 tag = 0;
    return io_uring_register_buffers_update_tag(&ring->uring, index, &memory, &tag, 1);
}

int au_make_file_table(au_ring *ring, uint32_t count)
{
    return make_table(ring, IORING_REGISTER_FILES2, count);
}

int au_set_file(au_ring *ring, uint32_t slot, int fd)
{
    return io_uring_register_files_update(&ring->uring, slot, &fd, 1);
}

int au_enter(au_ring *ring)
{
    ring->state->enters++;
    int ret = io_uring_get_events(&ring->uring);
    return ret == -EINTR ? 0 : ret;
}

int au_poller_sleeps(au_ring *ring)
{
    return (IO_URING_READ_ONCE(*ring->uring.sq.kflags) & IORING_SQ_NEED_WAKEUP) != 0;
}

/* SQPOLL: show the SQ to the kernel's poller, and enter the kernel only if the poller sleeps.
 * Not io_uring_submit(), which does the same and does not say whether it entered; it is to be
 * counted.  Entry i of the SQ's index array is i, for nobody but liburing has ever advanced it. */
static int publish(au_ring *ring)
{
    struct io_uring_sq *sq = &ring->uring.sq;
    sq->sqe_head = sq->sqe_tail;
    io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
    /* The poller sets the flag and looks at the tail once more before it sleeps; so here the tail
     * must be out before the flag is read, or each could miss the other (io_uring_setup(2)). */
    io_uring_smp_mb();
    if (!au_poller_sleeps(ring))
        return 0;
    int ret;
    do {
        ring->state->enters++;
        ret = io_uring_enter((unsigned)ring->uring.ring_fd, 0, 0, IORING_ENTER_SQ_WAKEUP, NULL);
    } while (ret == -EINTR);
    return ret;
}

/* Short of memory, the kernel may stop inside a chain and run what it has got; the members behind
 * would begin without waiting for it. They never shall: from then on nothing is submitted, and the
 * owner stops for good (C11). */
static int is_cut(const au_ring *ring)
{
    const struct io_uring_sq *sq = &ring->uring.sq;
    return io_uring_sq_ready(&ring->uring) > 0 &&
           (sq->sqes[(*sq->khead - 1) & *sq->kring_mask].flags & IOSQE_IO_LINK);
}

/* Hand the SQ to the kernel. */
static int submit(au_ring *ring)
{
    int ret;
    if (ring->uring.flags & IORING_SETUP_SQPOLL)
        return publish(ring);
    if (is_cut(ring))
        return -ENOMEM;
    do {
        ring->state->enters++;
        ret = io_uring_submit(&ring->uring);
    } while (ret == -EINTR);
    return ret > 0 && is_cut(ring) ? -ENOMEM : ret;
}

/* How many rows from here on are linked: 1 if this one is not. */
static uint32_t chain_length(const au_row *rows, uint32_t count)
{
    uint32_t length = 1;
    while (length < count && (rows[length - 1].sqe_flags & IOSQE_IO_LINK))
        length++;
    return length;
}

/* Keep a member's result with its operation's; false if they are not gathered. */
static struct gathering *gather(au_ring *ring, const struct io_uring_cqe *cqe)
{
    uint64_t slot = cqe->user_data & SLOT_MASK;
    if (slot >= ring->state->sq_entries)
        return NULL;
    struct gathering *gathering = &ring->gatherings[slot];
    uint64_t member = (cqe->user_data & MEMBER_MASK) >> MEMBER_SHIFT;
    if (gathering->results == NULL || gathering->user_data != (cqe->user_data & ~MEMBER_MASK) ||
        member >= gathering->count || gathering->results[member] != INT32_MIN)
        return NULL; /* Not of a batch; or wrong, and Python shall say so. */
    gathering->results[member] = cqe->res;
    return gathering;
}

static uint32_t drain(au_ring *ring, au_completion *out, uint32_t capacity)
{
    struct io_uring_cqe *cqe;
    unsigned head;
    uint32_t count = 0, seen = 0;
    const struct gathering *last = NULL;

    io_uring_for_each_cqe(&ring->uring, head, cqe) {
        if (count == capacity)
            break;
        const struct gathering *gathering = gather(ring, cqe);
        if (gathering != NULL && gathering == last) {
            out[count - 1].res++;
        } else {
            last = gathering;
            out[count].user_data = gathering != NULL ? gathering->user_data : cqe->user_data;
            out[count].res = gathering != NULL ? 1 : cqe->res;
            count++;
        }
        seen++;
    }
    io_uring_cq_advance(&ring->uring, seen);
    ring->state->in_flight -= seen;
    return count;
}

/* io_uring_enter(2): EAGAIN is short memory and EBUSY a full completion queue;
 * both pass once completions have been drained. */
static int passes(int ret)
{
    return ret >= 0 || ret == -EAGAIN || ret == -EBUSY;
}

/* IOPOLL: have the kernel look whether devices are done; no interrupt will say so. */
static int poll_devices(au_ring *ring)
{
    unsigned mode = ring->uring.flags & (IORING_SETUP_IOPOLL | IORING_SETUP_SQPOLL);
    if (mode != IORING_SETUP_IOPOLL || ring->state->in_flight == 0)
        return 0; /* With SQPOLL the poller does it. */
    return au_enter(ring);
}

/* Entries for whose sake the caller has to take another turn. */
static uint32_t needy(const au_ring *ring)
{
    if (ring->uring.flags & IORING_SETUP_IOPOLL)
        return ring->state->in_flight; /* The descriptor never becomes readable for them. */
    if (ring->uring.flags & IORING_SETUP_SQPOLL)
        return 0; /* The poller takes them, and wakes who waits for the descriptor. */
    return io_uring_sq_ready(&ring->uring);
}

int au_turn(au_ring *ring, const char *packed, uint32_t count,
            au_completion *out, uint32_t capacity)
{
    au_state *state = ring->state;
    struct io_uring *uring = &ring->uring;
    const au_row *rows = (const au_row *)(const void *)packed;
    uint32_t drained = 0;
    uint32_t whole = 0; /* rows that the SQ is known to have space for */
    int ret = 0;

    state->consumed = 0;
    while (state->consumed < count) {
        if (whole == 0)
            whole = chain_length(rows + state->consumed, count - state->consumed);
        if (io_uring_sq_space_left(uring) < whole) {
            /* SQ full: flush and go on; rows that find no room stay with the
             * caller, who brings them again. Nothing is dropped. */
            ret = submit(ring);
            if (!passes(ret))
                break;
            drained += drain(ring, out + drained, capacity - drained);
            if (io_uring_sq_space_left(uring) < whole)
                break;
            continue;
        }
        struct io_uring_sqe *sqe = io_uring_get_sqe(uring);
        const au_row *row = &rows[state->consumed++];
        whole--;
        memset(sqe, 0, sizeof(*sqe));
        sqe->opcode = row->opcode;
        sqe->flags = row->sqe_flags;
        sqe->fd = row->fd;
        sqe->off = (uint64_t)row->offset;
        sqe->addr = row->address;
        sqe->len = row->length;
        sqe->rw_flags = (int)row->op_flags;
        sqe->user_data = row->user_data;
        sqe->buf_index = row->buf_index;
        state->in_flight++;
    }
    if (passes(ret) && io_uring_sq_ready(uring) > 0)
        ret = submit(ring);
    if (passes(ret) && (uring->flags & IORING_SETUP_IOPOLL))
        ret = poll_devices(ring);

    /* With COOP_TASKRUN the kernel posts completions when this thread enters it, and
     * an overflown queue is refilled only on request: ask until neither flag is set,
     * in a bounded number of rounds so that the event loop gets its turn. */
    for (uint32_t round = 0; round <= capacity / 16; round++) {
        drained += drain(ring, out + drained, capacity - drained);
        if (!passes(ret) || drained == capacity)
            break;
        unsigned flags = IO_URING_READ_ONCE(*uring->sq.kflags);
        if (flags & IORING_SQ_CQ_OVERFLOW)
            state->overflows++;
        else if (!(flags & IORING_SQ_TASKRUN))
            break;
        state->enters++;
        ret = io_uring_get_events(uring);
        if (ret == -EINTR)
            ret = 0;
    }
    state->unsubmitted = needy(ring);
    /* Completions in hand come first: an error shows again at the next turn. */
    return drained > 0 || passes(ret) ? (int)drained : ret;
}

int au_pack(char *packed, uint32_t count, uint64_t user_data, uint64_t member, uint8_t opcode,
            uint8_t sqe_flags, uint16_t buf_index, uint32_t op_flags, const char *fds, const char *lengths, const char *offsets,
            const char *addresses)
{
    au_row *rows = (au_row *)(void *)packed;
    const int32_t *fd = (const int32_t *)(const void *)fds;
    const uint32_t *length = (const uint32_t *)(const void *)lengths;
    const int64_t *offset = (const int64_t *)(const void *)offsets;
    const uint64_t *address = (const uint64_t *)(const void *)addresses;
    for (uint32_t i = 0; i < count; i++)
        rows[i] = (au_row){.user_data = user_data + i * member, .address = address[i],
                           .offset = offset[i], .length = length[i], .fd = fd[i], .opcode = opcode,
                           .sqe_flags = sqe_flags, .buf_index = buf_index, .op_flags = op_flags};
    return 0;
}

int au_gather(au_ring *ring, uint64_t user_data, int32_t *results, uint32_t count)
{
    uint64_t slot = user_data & SLOT_MASK;
    if (slot >= ring->state->sq_entries)
        return -ERANGE;
    for (uint32_t i = 0; i < count; i++)
        results[i] = INT32_MIN;
    ring->gatherings[slot] = (struct gathering){results, user_data, count};
    return 0;
}

int64_t au_read_now(int fd, char *memory, uint32_t length, int64_t offset)
{
    /* With O_DIRECT the call would wait for the device. 0.15 us to ask each time: a
     * descriptor's number can have come to mean another file since the last read. */
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    if (flags & O_DIRECT)
        return -EAGAIN;

    uint32_t done = 0;
    while (done < length) {
        struct iovec rest = {memory + done, length - done};
        ssize_t ret = preadv2(fd, &rest, 1, (off_t)(offset + done), RWF_NOWAIT);
        if (ret < 0)
            return -errno;
        if (ret == 0)
            break;
        done += (uint32_t)ret;
    }
    return done;
}

int au_close(au_ring *ring)
{
    if (!ring->state->owned) {
        /* In a forked child only the descriptor is ours; the queues are not mapped. */
        close(ring->uring.ring_fd);
    } else {
        io_uring_queue_exit(&ring->uring);
    }
    release(ring);
    return 0;
}
