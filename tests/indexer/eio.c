/* Makes the FAULT_AT-th write, sync or rename below FAULT_UNDER fail with EIO, and logs it to FAULT_LOG.
   With FAULT_AT=0 nothing fails, and every one of them is logged. With FAULT_KILL set, the process is killed instead
   of the call's failing. Preloaded into a process by the tests. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int seen;

static int fails(const char *call, const char *path) {
    const char *under = getenv("FAULT_UNDER");
    if (strncmp(path, under, strlen(under)) != 0)
        return 0;
    int at = atoi(getenv("FAULT_AT"));
    if (__atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST) != at && at != 0)
        return 0;
    int saved = errno;
    int log = open(getenv("FAULT_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    char line[PATH_MAX + 32];
    int length = snprintf(line, sizeof line, "%s %s\n", call, path);
    syscall(SYS_write, log, line, length); /* not write(), which is replaced below */
    close(log);
    if (at && getenv("FAULT_KILL"))
        raise(SIGKILL);
    errno = at ? EIO : saved;
    return at != 0;
}

static int fd_fails(const char *call, int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return fails(call, path);
}

#define REPLACED(type, name, parameters, arguments, fault, failure)                                                   \
    type name parameters {                                                                                            \
        type(*real) parameters = (type(*) parameters)dlsym(RTLD_NEXT, #name);                                         \
        return fault ? failure : real arguments;                                                                      \
    }
#define REPLACED_FD(type, name, parameters, arguments) REPLACED(type, name, parameters, arguments, fd_fails(#name, fd), -1)

REPLACED_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
REPLACED_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
REPLACED_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
REPLACED_FD(int, ftruncate, (int fd, off_t size), (fd, size))
REPLACED_FD(int, ftruncate64, (int fd, off64_t size), (fd, size))
REPLACED_FD(int, fsync, (int fd), (fd))
REPLACED_FD(int, fdatasync, (int fd), (fd))
REPLACED_FD(ssize_t, sendfile, (int fd, int from, off_t *at, size_t size), (fd, from, at, size))
REPLACED_FD(ssize_t, sendfile64, (int fd, int from, off64_t *at, size_t size), (fd, from, at, size))
REPLACED(ssize_t, copy_file_range, (int from, off64_t *at, int fd, off64_t *to, size_t size, unsigned flags),
         (from, at, fd, to, size, flags), fd_fails("copy_file_range", fd), -1)
/* The C library's own buffered writes don't pass through write(). */
REPLACED(size_t, fwrite, (const void *data, size_t size, size_t count, FILE *file), (data, size, count, file),
         fd_fails("fwrite", fileno(file)), 0)
REPLACED(int, rename, (const char *old, const char *new), (old, new), fails("rename", new), -1)
