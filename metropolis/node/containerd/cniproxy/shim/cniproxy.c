// SPDX-License-Identifier: Apache-2.0
//
// cniproxy: the program that a container runtime executes as a CNI plugin. It
// does not know CNI: it sends its arguments, the CNI_ part of its environment
// and its stdin to the network service, copies the answer to stdout and exits
// with the answer's code. metropolis/node/core/network/cni has the protocol.
//
//   request:  "MCNI" version | argv, env, stdin lengths | argv | env | stdin
//   answer:   "MCNI" version | exit code, length | stdout bytes
//   receipt:  one byte, once the answer is on stdout
//
// Numbers are 32 bits, big endian; argv and env are NUL-terminated strings.
// Without the receipt the service undoes an ADD: a runtime that killed this
// process never learns of the interface, and may never delete it. So a receipt
// that cannot be sent is a failure.
//
// Nothing is written to stdout before the whole answer is here. If there is no
// answer, the CNI error printed is the shim's own: code 11 (try again later)
// if the service is away or died, 50 (not available) for STATUS, 5 (I/O failure)
// if the fault is on this side.
//
// It knows two operations: STATUS, for that code; and DEL, which needs no
// configuration, so a stdin that is closed, never ends or is too large is no
// reason not to delete.
//
// Static and without malloc, because its start is its whole cost: a runtime runs
// it once per operation. The buffer is in .bss; untouched pages are free.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef CNIPROXY_SOCKET
#define CNIPROXY_SOCKET "/run/metropolis/network/cni.sock"
#endif
#define TIMEOUT_MS 60000  // for everything together; runtimes allow 2 to 4 minutes
#define DEL_STDIN_MS 1000 // for the stdin of DEL, which needs none
#define MAGIC 0x4d434e49u // "MCNI"
#define VERSION 1u
#define HEAD_MAX (1u << 20)   // argv and environment together
#define STDIN_MAX (8u << 20)  // a GC with 30,000 valid attachments
#define ANSWER_MAX (1u << 20)
enum { CNI_IO_FAILURE = 5, CNI_TRY_AGAIN_LATER = 11, CNI_NOT_AVAILABLE = 50 };

static union {
    uint32_t word[5];
    char byte[20 + HEAD_MAX + STDIN_MAX];
} buf;
static int64_t deadline; // milliseconds, CLOCK_MONOTONIC

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int is_command(const char *name)
{
    const char *command = getenv("CNI_COMMAND");
    return command && strcmp(command, name) == 0;
}

// The texts are literals and strerror()'s: nothing in them needs escaping.
static _Noreturn void fail(int code, const char *msg, int err)
{
    if (code == CNI_TRY_AGAIN_LATER && is_command("STATUS"))
        code = CNI_NOT_AVAILABLE;
    printf("{\"cniVersion\": \"1.1.0\", \"code\": %d, \"msg\": \"cniproxy: %s\", "
           "\"details\": \"%s\"}\n", code, msg, err ? strerror(err) : "");
    fflush(stdout);
    exit(1);
}

// Returns 0 once fd is ready (or broken: the next call reports it), else an
// errno, ETIMEDOUT at the deadline.
static int ready(int fd, short events)
{
    struct pollfd p = { .fd = fd, .events = events };
    int n;
    do {
        int64_t left = deadline - now_ms();
        n = left > 0 ? poll(&p, 1, (int)left) : 0;
    } while (n < 0 && errno == EINTR);
    return n > 0 ? 0 : n ? errno : ETIMEDOUT;
}

static void await(int fd, short events, int code, const char *msg)
{
    int err = ready(fd, events);
    if (err)
        fail(code, msg, err);
}

// Reads to the end of the file, or `size` bytes; returns how many.
static size_t read_all(int fd, char *to, size_t size, int code, const char *msg)
{
    size_t have = 0;
    while (have < size) {
        await(fd, POLLIN, code, msg);
        ssize_t n = read(fd, to + have, size - have);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            fail(code, msg, errno);
        if (n == 0)
            break;
        have += n > 0 ? (size_t)n : 0;
    }
    return have;
}

// Reads stdin as read_all does; returns 0 bytes when that cannot be done.
static size_t read_leniently(char *to, size_t size)
{
    int64_t end = deadline;
    size_t have = 0;
    ssize_t n = 1;
    if (deadline > now_ms() + DEL_STDIN_MS)
        deadline = now_ms() + DEL_STDIN_MS;
    while (n && have < size && !ready(0, POLLIN)) {
        n = read(0, to + have, size - have);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            break;
        have += n > 0 ? (size_t)n : 0;
    }
    deadline = end;
    return n == 0 ? have : 0;
}

// Copies NUL-terminated strings that begin with `prefix`; returns their bytes.
static uint32_t pack(char *const *strings, const char *prefix, char *to, size_t room)
{
    size_t used = 0;
    for (; *strings; strings++) {
        size_t n = strlen(*strings) + 1;
        if (strncmp(*strings, prefix, strlen(prefix)) != 0)
            continue;
        if (n > room - used)
            fail(CNI_IO_FAILURE, "arguments and environment are too large", E2BIG);
        memcpy(to + used, *strings, n);
        used += n;
    }
    return (uint32_t)used;
}

static int dial(void)
{
    // Only tests set the variable. It gives nobody more rights: secure_getenv()
    // ignores it for a set-uid program, and a runtime's environment is root's.
    const char *path = secure_getenv("CNIPROXY_SOCKET");
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    int64_t left = deadline - now_ms();
    left = left > 0 ? left : 1; // 0 would be no limit
    struct timeval patience = { .tv_sec = left / 1000, .tv_usec = left % 1000 * 1000 };
    path = path ? path : CNIPROXY_SOCKET;
    if (strlen(path) >= sizeof(to.sun_path))
        fail(CNI_IO_FAILURE, "CNIPROXY_SOCKET", ENAMETOOLONG);
    strcpy(to.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && fd < 3) { // a closed stdin or stdout must not become this one
        int low = fd;
        fd = fcntl(low, F_DUPFD_CLOEXEC, 3);
        close(low);
    }
    if (fd < 0)
        fail(CNI_IO_FAILURE, "socket", errno);
    // Otherwise a full backlog would block connect() for ever.
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)))
        fail(CNI_IO_FAILURE, "setsockopt SO_SNDTIMEO", errno);
    while (connect(fd, (struct sockaddr *)&to, sizeof(to)))
        if (errno != EINTR)
            fail(CNI_TRY_AGAIN_LATER, "the network service is not there", errno);
    return fd;
}

int main(int argc, char **argv)
{
    const char *timeout = secure_getenv("CNIPROXY_TIMEOUT_MS"); // for tests
    const char *lost = "the network service did not answer";
    char *head = buf.byte + 20;

    (void)argc;
    signal(SIGPIPE, SIG_IGN);
    deadline = now_ms() + (timeout ? atoi(timeout) : TIMEOUT_MS);

    uint32_t args = pack(argv, "", head, HEAD_MAX);
    uint32_t env = pack(environ, "CNI_", head + args, HEAD_MAX - args);
    size_t in = 0; // a person at a terminal has no configuration to type
    if (!isatty(0) && is_command("DEL"))
        in = read_leniently(head + args + env, STDIN_MAX - 1);
    else if (!isatty(0))
        in = read_all(0, head + args + env, STDIN_MAX, CNI_IO_FAILURE, "reading stdin");
    if (in == STDIN_MAX)
        fail(CNI_IO_FAILURE, "stdin is too large", EFBIG);
    uint32_t header[5] = { htonl(MAGIC), htonl(VERSION), htonl(args), htonl(env),
                           htonl((uint32_t)in) };
    memcpy(buf.word, header, sizeof(header));

    int fd = dial();
    for (size_t sent = 0, size = 20 + args + env + in; sent < size;) {
        await(fd, POLLOUT, CNI_TRY_AGAIN_LATER, lost);
        ssize_t n = send(fd, buf.byte + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
            break; // it hung up early; its answer can still be read
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            fail(CNI_TRY_AGAIN_LATER, lost, errno);
        sent += n > 0 ? (size_t)n : 0;
    }

    size_t got = read_all(fd, buf.byte, 16, CNI_TRY_AGAIN_LATER, lost);
    if (got < 16)
        fail(CNI_TRY_AGAIN_LATER, lost, EPIPE);
    uint32_t code = ntohl(buf.word[2]), size = ntohl(buf.word[3]);
    if (ntohl(buf.word[0]) != MAGIC || ntohl(buf.word[1]) != VERSION || code > 255 ||
        size > ANSWER_MAX)
        fail(CNI_IO_FAILURE, "the network service speaks another protocol", EPROTO);
    if (read_all(fd, buf.byte, size, CNI_TRY_AGAIN_LATER, lost) < size)
        fail(CNI_TRY_AGAIN_LATER, "the network service broke off its answer", EPIPE);

    for (size_t put = 0; put < size;) {
        // A pipe that polls ready takes 4 KiB. When nobody reads, nobody can be
        // informed either.
        if (ready(1, POLLOUT))
            return 1;
        ssize_t n = write(1, buf.byte + put, size - put < 4096 ? size - put : 4096);
        if (n < 0 && errno != EINTR && errno != EAGAIN)
            return 1;
        put += n > 0 ? (size_t)n : 0;
    }
    ssize_t n;
    do
        n = send(fd, "", 1, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == 1 ? (int)code : 1; // given up on: an ADD has been taken back
}
