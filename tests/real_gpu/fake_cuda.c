/* fake_cuda.c - a pretend libcuda.so.1 beside the pretend NVML of ../gpu/fake_nvml.c.
 *
 * One device of $PRETEND_GPU_MIB. Each process writes "MIB BUSY XID" into $PRETEND_GPU_FOLDER/<pid>; pretend.py adds the
 * files up for the pretend NVML, also for some time after a process has ended. An allocation that does not fit beside
 * all files is refused, and the error names the other processes, as PyTorch's does. The two
 * kernels of device.py are known by name; nothing is compiled.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
enum { OK = 0, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };
enum { CONTEXT_MIB = 512, MAX_BLOCKS = 256 };

static long mine;                       /* MiB of this process */
static long blocks[MAX_BLOCKS];
static int broken;                      /* an illegal address was written to */
static int corrupting;
static uint64_t spinning_ns;
static __thread void *current;
static char context, module, spin_kernel, corrupt_kernel;

static void nap(uint64_t ns) {
    struct timespec t = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };
    nanosleep(&t, NULL);
}
static long total_mib(void) { return atol(getenv("PRETEND_GPU_MIB")); }
static char others[1024];               /* who else has memory, in the words of PyTorch's out-of-memory error */
static long taken_mib(int with_mine) {
    long sum = with_mine ? mine : 0;
    others[0] = 0;
    DIR *folder = opendir(getenv("PRETEND_GPU_FOLDER"));
    for (struct dirent *e; folder && (e = readdir(folder));) {
        if (e->d_name[0] < '0' || e->d_name[0] > '9' || atol(e->d_name) == getpid()) continue;
        char path[1024]; long mib = 0;
        snprintf(path, sizeof path, "%s/%s", getenv("PRETEND_GPU_FOLDER"), e->d_name);
        FILE *f = fopen(path, "r");
        if (f) {
            size_t n = strlen(others);
            if (fscanf(f, "%ld", &mib) == 1) sum += mib;
            snprintf(others + n, sizeof others - n, " Process %s has %ld.00 MiB memory in use.", e->d_name, mib);
            fclose(f);
        }
    }
    if (folder) closedir(folder);
    return sum;
}
static void tell(int busy) {
    char path[1024], new[1024];
    snprintf(path, sizeof path, "%s/%d", getenv("PRETEND_GPU_FOLDER"), getpid());
    snprintf(new, sizeof new, "%s/.%d", getenv("PRETEND_GPU_FOLDER"), getpid());
    FILE *f = fopen(new, "w");
    if (!f) abort();
    fprintf(f, "%ld %d %d\n", mine, busy, broken ? 31 : 0);
    fclose(f);
    rename(new, path);
}
static int change(long mib) {
    char path[1024];
    snprintf(path, sizeof path, "%s/.lock", getenv("PRETEND_GPU_FOLDER"));
    int lock = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    flock(lock, LOCK_EX);
    int fits = taken_mib(1) + mib <= total_mib();
    if (fits) { mine += mib; tell(0); }
    close(lock);
    nap(120000000);                     /* until the pretend NVML shows it */
    return fits ? OK : OUT_OF_MEMORY;
}
#define IN_CONTEXT do { if (broken) return ILLEGAL_ADDRESS; if (!current) return INVALID_CONTEXT; } while (0)

API int cuInit(unsigned flags) { (void)flags; return OK; }
API int cuDeviceGet(int *device, int n) { *device = n; return OK; }
API int cuDeviceGetCount(int *n) {
    *n = 1;
    for (const char *p = getenv("CUDA_VISIBLE_DEVICES"); p && *p; p++) *n += *p == ',';
    return OK;
}
API int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    (void)device;
    const char *p = getenv("CUDA_VISIBLE_DEVICES");
    if (!p || strncmp(p, "GPU-", 4)) return NOT_FOUND;
    p += 4;
    for (int i = 0; i < 16 && sscanf(p, "%2hhx", &uuid[i]) == 1; i++) { p += 2; p += *p == '-'; }
    return OK;
}
API int cuDevicePrimaryCtxRetain(void **out, int device) { (void)device; *out = &context; return mine ? OK : change(CONTEXT_MIB); }
API int cuCtxSetCurrent(void *which) { current = which; return OK; }
API int cuMemGetInfo_v2(size_t *free, size_t *total) {
    IN_CONTEXT;
    *total = (size_t)total_mib() << 20; *free = (size_t)(total_mib() - taken_mib(1)) << 20;
    return OK;
}
API int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
    IN_CONTEXT;
    int n = 0;
    while (n < MAX_BLOCKS && blocks[n]) n++;
    if (n == MAX_BLOCKS || change((long)(bytes >> 20))) return OUT_OF_MEMORY;
    blocks[n] = (long)(bytes >> 20); *pointer = (uint64_t)n + 1;
    return OK;
}
API int cuMemFree_v2(uint64_t pointer) { IN_CONTEXT; change(-blocks[pointer - 1]); blocks[pointer - 1] = 0; return OK; }
API int cuModuleLoadData(void **out, const void *image) { IN_CONTEXT; *out = &module; return strstr(image, ".entry spin") ? OK : NOT_FOUND; }
API int cuModuleGetFunction(void **out, void *of, const char *name) {
    IN_CONTEXT;
    *out = strcmp(name, "spin") ? &corrupt_kernel : &spin_kernel;
    return of == &module ? OK : NOT_FOUND;
}
API int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, void *stream, void **parameters, void **extra) {
    (void)shared; (void)stream; (void)extra;
    IN_CONTEXT;
    if (gx * gy * gz * bx * by * bz != 1) return NOT_FOUND;
    if (function == &spin_kernel) spinning_ns = *(uint64_t *)parameters[0];
    else corrupting = 1;
    return OK;
}
API int cuCtxSynchronize(void) {
    IN_CONTEXT;
    if (corrupting) { broken = 1; tell(0); nap(200000000); return ILLEGAL_ADDRESS; }
    if (spinning_ns) { tell(1); nap(spinning_ns); spinning_ns = 0; tell(0); }
    return OK;
}
API int cuGetErrorName(int code, const char **text) {
    static char full[1100];
    snprintf(full, sizeof full, "CUDA_ERROR_OUT_OF_MEMORY%s", others);
    *text = code == OUT_OF_MEMORY ? full : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : "CUDA_ERROR_NOT_FOUND";
    return OK;
}
