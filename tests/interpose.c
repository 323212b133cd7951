/* Lets system calls of another program fail: built and preloaded by the tests (tests/interposing.py).
 *
 * A page that is shared with the test (the file INTERPOSE_CONTROL) says which call fails, and how; only calls on what lies under
 * INTERPOSE_PATH count.  The same page shifts the clock that tells the date; the one that measures time is left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    int32_t armed;   /* calls are counted */
    int32_t at;      /* the number of the call that fails, from 1 on */
    int32_t stays;   /* those behind it fail too, but for what gives room back */
    int32_t error;   /* how; 0: a write takes half of what it is given, once */
    int32_t calls;   /* counted so far */
    int32_t fired;   /* failed so far */
    int64_t shift;   /* seconds that the date is away from the right one */
    char first[64];  /* the call that failed first */
    char name[256];  /* and on what */
};

static struct control *control;
static char prefix[PATH_MAX];
static size_t prefix_length;

__attribute__((constructor)) static void start(void) {
    const char *file = getenv("INTERPOSE_CONTROL");
    const char *path = getenv("INTERPOSE_PATH");
    if (file == NULL || path == NULL) return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return;
    void *page = (void *)syscall(SYS_mmap, NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (page == MAP_FAILED) return;
    snprintf(prefix, sizeof prefix, "%s", path);
    prefix_length = strlen(prefix);
    control = page;
}

static int under(const char *path) { return strncmp(path, prefix, prefix_length) == 0; }

static int of_descriptor(int fd, char *name, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlink, link, name, size - 1);
    if (length < 0) return 0;
    name[length] = 0;
    return under(name);
}

static int at_directory(int fd, const char *path, char *name, size_t size) {
    if (path == NULL) return 0;
    if (path[0] == '/' || fd == AT_FDCWD) {
        snprintf(name, size, "%s", path);
        return under(path);
    }
    return of_descriptor(fd, name, size);
}

/* Whether this call fails; errno says how then, and is 0 for half a write. */
static int fails(const char *call, const char *name, int gives_back) {
    if (control->error == 0 && strstr(call, "write") == NULL) return 0;
    int number = __atomic_add_fetch(&control->calls, 1, __ATOMIC_SEQ_CST);
    if (number < control->at) return 0;
    if (number > control->at && (!control->stays || gives_back)) return 0;
    if (__atomic_fetch_add(&control->fired, 1, __ATOMIC_SEQ_CST) == 0) {
        snprintf(control->first, sizeof control->first, "%s", call);
        snprintf(control->name, sizeof control->name, "%s", name);
    }
    errno = control->error;
    return 1;
}

#define ARMED (control != NULL && __atomic_load_n(&control->armed, __ATOMIC_SEQ_CST))
#define ON_DESCRIPTOR(call, fd, gives_back, failure) \
    if (ARMED) { \
        char name[PATH_MAX]; \
        if (of_descriptor(fd, name, sizeof name) && fails(call, name, gives_back)) { failure; } \
    }
#define ON_PATH(call, fd, path, gives_back, failure) \
    if (ARMED) { \
        char name[PATH_MAX]; \
        if (at_directory(fd, path, name, sizeof name) && fails(call, name, gives_back)) { failure; } \
    }
#define NEXT(result, call, ...) \
    static result (*next)(__VA_ARGS__); \
    if (next == NULL) next = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, call);

#define OPEN(function) \
    int function(const char *path, int flags, ...) { \
        NEXT(int, #function, const char *, int, ...) \
        va_list more; \
        va_start(more, flags); \
        int mode = va_arg(more, int); \
        va_end(more); \
        ON_PATH("open", AT_FDCWD, path, !(flags & O_CREAT), return -1) \
        return next(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function) \
    int function(int directory, const char *path, int flags, ...) { \
        NEXT(int, #function, int, const char *, int, ...) \
        va_list more; \
        va_start(more, flags); \
        int mode = va_arg(more, int); \
        va_end(more); \
        ON_PATH("open", directory, path, !(flags & O_CREAT), return -1) \
        return next(directory, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    NEXT(int, "close", int)
    ON_DESCRIPTOR("close", fd, 1, next(fd); errno = control->error; return -1)
    return next(fd);
}

ssize_t write(int fd, const void *octets, size_t size) {
    NEXT(ssize_t, "write", int, const void *, size_t)
    ON_DESCRIPTOR("write", fd, 0, if (errno) return -1; size = size > 1 ? size / 2 : size)
    return next(fd, octets, size);
}

#define PWRITE(function) \
    ssize_t function(int fd, const void *octets, size_t size, off64_t at) { \
        NEXT(ssize_t, #function, int, const void *, size_t, off64_t) \
        ON_DESCRIPTOR("pwrite", fd, 0, if (errno) return -1; size = size > 1 ? size / 2 : size) \
        return next(fd, octets, size, at); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    NEXT(ssize_t, "writev", int, const struct iovec *, int)
    if (ARMED) {
        char name[PATH_MAX];
        if (of_descriptor(fd, name, sizeof name) && fails("writev", name, 0)) {
            if (errno) return -1;
            struct iovec half = parts[0];
            if (half.iov_len > 1) half.iov_len /= 2;
            return next(fd, &half, 1);
        }
    }
    return next(fd, parts, count);
}

ssize_t read(int fd, void *octets, size_t size) {
    NEXT(ssize_t, "read", int, void *, size_t)
    ON_DESCRIPTOR("read", fd, 1, if (errno) return -1)
    return next(fd, octets, size);
}

#define PREAD(function) \
    ssize_t function(int fd, void *octets, size_t size, off64_t at) { \
        NEXT(ssize_t, #function, int, void *, size_t, off64_t) \
        ON_DESCRIPTOR("pread", fd, 1, if (errno) return -1) \
        return next(fd, octets, size, at); \
    }
PREAD(pread)
PREAD(pread64)

#define SYNC(function) \
    int function(int fd) { \
        NEXT(int, #function, int) \
        ON_DESCRIPTOR(#function, fd, 0, if (errno) return -1) \
        return next(fd); \
    }
SYNC(fsync)
SYNC(fdatasync)
SYNC(syncfs)

#define TRUNCATE(function) \
    int function(int fd, off64_t size) { \
        NEXT(int, #function, int, off64_t) \
        ON_DESCRIPTOR("ftruncate", fd, size == 0, if (errno) return -1) \
        return next(fd, size); \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define MMAP(function) \
    void *function(void *address, size_t size, int protection, int flags, int fd, off64_t at) { \
        NEXT(void *, #function, void *, size_t, int, int, int, off64_t) \
        if (fd >= 0) ON_DESCRIPTOR("mmap", fd, 1, if (errno) return MAP_FAILED) \
        return next(address, size, protection, flags, fd, at); \
    }
MMAP(mmap)
MMAP(mmap64)

int rename(const char *from, const char *to) {
    NEXT(int, "rename", const char *, const char *)
    ON_PATH("rename", AT_FDCWD, from, 0, if (errno) return -1)
    return next(from, to);
}

int renameat(int from_directory, const char *from, int to_directory, const char *to) {
    NEXT(int, "renameat", int, const char *, int, const char *)
    ON_PATH("rename", from_directory, from, 0, if (errno) return -1)
    return next(from_directory, from, to_directory, to);
}

int linkat(int from_directory, const char *from, int to_directory, const char *to, int flags) {
    NEXT(int, "linkat", int, const char *, int, const char *, int)
    ON_PATH("link", from_directory, from, 0, if (errno) return -1)
    return next(from_directory, from, to_directory, to, flags);
}

int unlink(const char *path) {
    NEXT(int, "unlink", const char *)
    ON_PATH("unlink", AT_FDCWD, path, 1, if (errno) return -1)
    return next(path);
}

int unlinkat(int directory, const char *path, int flags) {
    NEXT(int, "unlinkat", int, const char *, int)
    ON_PATH("unlink", directory, path, 1, if (errno) return -1)
    return next(directory, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(int, "mkdir", const char *, mode_t)
    ON_PATH("mkdir", AT_FDCWD, path, 0, if (errno) return -1)
    return next(path, mode);
}

/* The date.  No prefix here: all of the process is told the same. */

int clock_gettime(clockid_t which, struct timespec *now) {
    NEXT(int, "clock_gettime", clockid_t, struct timespec *)
    int result = next(which, now);
    if (result == 0 && control != NULL && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += control->shift;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    NEXT(int, "gettimeofday", struct timeval *, void *)
    int result = next(now, zone);
    if (result == 0 && control != NULL) now->tv_sec += control->shift;
    return result;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result != NULL) *result = now.tv_sec;
    return now.tv_sec;
}
