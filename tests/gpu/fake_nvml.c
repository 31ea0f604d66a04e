/* fake_nvml.c - a pretend libnvidia-ml.so.1 for tests without a GPU.
 *
 * The REAL nvidia-ml-py (module pynvml) loads it: pynvml does
 * CDLL("libnvidia-ml.so.1"), so LD_LIBRARY_PATH decides which file that is.
 * Everything it reports is read again, on every call, from the text file named
 * by $FAKE_NVML_FILE, so a test can change a device while the process runs
 * (write a new file beside it and rename() it over the old one).
 *
 * File: one record a line, blanks between key=value pairs, '#' starts a comment.
 *   global  driver=580.95.05 init_error=0 count_error=0 latency_ms=0
 *   device  uuid=GPU-... name=Fake_H100 pci=00000000:01:00.0 total=8589934592
 *           used=1073741824 reserved=536870912 util=35 memutil=10 temp=40
 *           mem_error=0 util_error=0 handle_error=0 lost=0 no_v2=0
 *           procs=1234:104857600,99:1048576 xid=0 (an event, told once for each new value)
 *           temp_error=0 proc_error=0 register_error=0 mode_error=0 (of the calls for these) compute_mode=0
 *           mig_mode=1 (MIG is on, also without a slice) gone=1 (not counted; the numbers behind it shift)
 *           Of "global": generation=N; after a change of it every call gives UNINIT, as after a reload of the driver,
 *           until the process has shut down and initialised anew.
 *   mig     parent=0 uuid=MIG-... name=... total=... used=... procs=...
 * The n-th "device" line is NVML index n-1.  *_error are NVML error codes
 * (3 NOT_SUPPORTED, 9 DRIVER_NOT_LOADED, 15 GPU_IS_LOST, 18 LIB_RM_VERSION_MISMATCH,
 * 999 UNKNOWN).  '_' in a name reads as a blank.  No file: no devices.
 *
 * Build: gcc -O1 -Wall -Wextra -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 \
 *            -o libnvidia-ml.so.1 fake_nvml.c -lpthread
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

typedef int ret_t;
typedef void *dev_t_;
typedef unsigned int uint;
typedef unsigned long long ull;
#define API __attribute__((visibility("default")))

enum { OK = 0, UNINIT = 1, BAD_ARG = 2, NOT_SUP = 3, NOT_FOUND = 6, TOO_SMALL = 7,
       GPU_LOST = 15, VERSION = 25 };
#define MAXDEV 64
#define MAXPROC 32

struct dev {
    int is_mig, parent;            /* parent: NVML index of a MIG slice's GPU */
    char uuid[96], name[96], pci[32];
    ull total, used, reserved;
    uint util, memutil, temp;
    int mem_error, util_error, handle_error, lost, no_v2, xid;
    int temp_error, proc_error, register_error, mode_error, compute_mode, mig_mode, gone;
    int nproc; uint pid[MAXPROC]; ull mem[MAXPROC];
};
struct conf {
    char driver[80];
    int init_error, count_error, latency_ms, generation, n;
    struct dev d[MAXDEV];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int refs;                   /* nvmlInit is counted, as in the real one */
static int generation;             /* the driver's, when the first nvmlInit was done */
static char handles[MAXDEV];       /* a handle is the address of its slot */

static void set(struct conf *c, struct dev *d, const char *k, const char *v) {
    if (!d) {
        if (!strcmp(k, "driver")) snprintf(c->driver, sizeof c->driver, "%s", v);
        else if (!strcmp(k, "init_error")) c->init_error = atoi(v);
        else if (!strcmp(k, "count_error")) c->count_error = atoi(v);
        else if (!strcmp(k, "latency_ms")) c->latency_ms = atoi(v);
        else if (!strcmp(k, "generation")) c->generation = atoi(v);
        return;
    }
    if (!strcmp(k, "uuid")) snprintf(d->uuid, sizeof d->uuid, "%s", v);
    else if (!strcmp(k, "pci")) snprintf(d->pci, sizeof d->pci, "%s", v);
    else if (!strcmp(k, "name")) {
        snprintf(d->name, sizeof d->name, "%s", v);
        for (char *p = d->name; *p; p++) if (*p == '_') *p = ' ';
    }
    else if (!strcmp(k, "total")) d->total = strtoull(v, 0, 0);
    else if (!strcmp(k, "used")) d->used = strtoull(v, 0, 0);
    else if (!strcmp(k, "reserved")) d->reserved = strtoull(v, 0, 0);
    else if (!strcmp(k, "util")) d->util = (uint)atoi(v);
    else if (!strcmp(k, "memutil")) d->memutil = (uint)atoi(v);
    else if (!strcmp(k, "temp")) d->temp = (uint)atoi(v);
    else if (!strcmp(k, "mem_error")) d->mem_error = atoi(v);
    else if (!strcmp(k, "util_error")) d->util_error = atoi(v);
    else if (!strcmp(k, "handle_error")) d->handle_error = atoi(v);
    else if (!strcmp(k, "lost")) d->lost = atoi(v);
    else if (!strcmp(k, "no_v2")) d->no_v2 = atoi(v);
    else if (!strcmp(k, "xid")) d->xid = atoi(v);
    else if (!strcmp(k, "parent")) d->parent = atoi(v);
    else if (!strcmp(k, "temp_error")) d->temp_error = atoi(v);
    else if (!strcmp(k, "proc_error")) d->proc_error = atoi(v);
    else if (!strcmp(k, "register_error")) d->register_error = atoi(v);
    else if (!strcmp(k, "mode_error")) d->mode_error = atoi(v);
    else if (!strcmp(k, "compute_mode")) d->compute_mode = atoi(v);
    else if (!strcmp(k, "mig_mode")) d->mig_mode = atoi(v);
    else if (!strcmp(k, "gone")) d->gone = atoi(v);
    else if (!strcmp(k, "procs")) {
        const char *p = v;
        while (*p && d->nproc < MAXPROC) {
            char *e; ull pid = strtoull(p, &e, 10), mem = 0;
            if (e == p) break;
            if (*e == ':') mem = strtoull(e + 1, &e, 10);
            d->pid[d->nproc] = (uint)pid; d->mem[d->nproc++] = mem;
            p = *e == ',' ? e + 1 : e;
        }
    }
}

/* Reads the file into *c (malloc'ed by the caller) and sleeps latency_ms. */
static void load(struct conf *c) {
    memset(c, 0, sizeof *c);
    snprintf(c->driver, sizeof c->driver, "580.00.00");
    const char *path = getenv("FAKE_NVML_FILE");
    FILE *f = path ? fopen(path, "r") : NULL;
    if (f) {
        char line[4096];
        while (fgets(line, sizeof line, f)) {
            char *save = NULL, *hash = strchr(line, '#');
            if (hash) *hash = 0;
            char *tok = strtok_r(line, " \t\r\n", &save);
            if (!tok) continue;
            struct dev *d = NULL;
            if (!strcmp(tok, "device") || !strcmp(tok, "mig")) {
                if (c->n == MAXDEV) break;
                d = &c->d[c->n];
                d->is_mig = tok[0] == 'm'; d->parent = -1;
                d->total = 8ULL << 30; d->reserved = 0; d->temp = 40;
                snprintf(d->name, sizeof d->name, "Fake GPU");
                snprintf(d->uuid, sizeof d->uuid, "%s-00000000-0000-0000-0000-%012d",
                         d->is_mig ? "MIG" : "GPU", c->n);
                snprintf(d->pci, sizeof d->pci, "00000000:%02X:00.0", c->n + 1);
                c->n++;
            } else if (strcmp(tok, "global")) continue;
            while ((tok = strtok_r(NULL, " \t\r\n", &save))) {
                char *eq = strchr(tok, '=');
                if (eq) { *eq = 0; set(c, d, tok, eq + 1); }
            }
        }
        fclose(f);
    }
    if (c->latency_ms > 0) {
        struct timespec t = { c->latency_ms / 1000, (c->latency_ms % 1000) * 1000000L };
        nanosleep(&t, NULL);
    }
}

#define DONE(r) do { ret_t r_ = (r); free(c); return r_; } while (0)
#define IN_TIME do { if (c->generation != generation) DONE(UNINIT); } while (0)
static int ready(void) { pthread_mutex_lock(&lock); int r = refs; pthread_mutex_unlock(&lock); return r > 0; }
/* slot of the i-th plain device, or -1 */
static int plain(struct conf *c, uint i) {
    for (int s = 0; s < c->n; s++) if (!c->d[s].is_mig && !c->d[s].gone && i-- == 0) return s;
    return -1;
}
static int has_mig(struct conf *c, int slot) {
    int idx = 0;
    for (int s = 0; s < slot; s++) idx += !c->d[s].is_mig;
    for (int s = 0; s < c->n; s++) if (c->d[s].is_mig && c->d[s].parent == idx) return 1;
    return 0;
}
/* Common head of every call on a handle: loads, checks, and leaves D set. */
#define HEAD(h)                                                              \
    if (!ready()) return UNINIT;                                             \
    struct conf *c = malloc(sizeof *c); if (!c) return 20; load(c);          \
    int slot = (char *)(h) >= handles && (char *)(h) < handles + c->n        \
                   ? (int)((char *)(h) - handles) : -1;                      \
    struct dev *D = slot < 0 ? NULL : &c->d[slot]; (void)D;                  \
    IN_TIME; if (!D) DONE(BAD_ARG);                                          \
    if (D->lost || D->gone) DONE(GPU_LOST)

API ret_t nvmlInitWithFlags(uint flags) {
    (void)flags;
    struct conf *c = malloc(sizeof *c); if (!c) return 20; load(c);
    if (c->init_error) DONE(c->init_error);
    pthread_mutex_lock(&lock); if (!refs++) generation = c->generation; pthread_mutex_unlock(&lock);
    DONE(OK);
}
API ret_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API ret_t nvmlInit(void) { return nvmlInitWithFlags(0); }
API ret_t nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    ret_t r = refs > 0 ? (refs--, OK) : UNINIT;
    pthread_mutex_unlock(&lock);
    return r;
}
API const char *nvmlErrorString(ret_t r) {
    switch (r) {
    case OK: return "Success"; case UNINIT: return "Uninitialized";
    case BAD_ARG: return "Invalid Argument"; case NOT_SUP: return "Not Supported";
    case NOT_FOUND: return "Not Found"; case TOO_SMALL: return "Insufficient Size";
    case 9: return "Driver Not Loaded"; case GPU_LOST: return "GPU is lost";
    case 18: return "Driver/library version mismatch"; default: return "Unknown Error";
    }
}
API ret_t nvmlSystemGetDriverVersion(char *s, uint n) {
    if (!ready()) return UNINIT;
    struct conf *c = malloc(sizeof *c); if (!c) return 20; load(c);
    snprintf(s, n, "%s", c->driver); DONE(OK);
}
API ret_t nvmlSystemGetNVMLVersion(char *s, uint n) { snprintf(s, n, "13.fake"); return OK; }
API ret_t nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 13000; return ready() ? OK : UNINIT; }
API ret_t nvmlSystemGetCudaDriverVersion(int *v) { return nvmlSystemGetCudaDriverVersion_v2(v); }

API ret_t nvmlDeviceGetCount_v2(uint *n) {
    if (!ready()) return UNINIT;
    struct conf *c = malloc(sizeof *c); if (!c) return 20; load(c);
    IN_TIME; if (c->count_error) DONE(c->count_error);
    *n = 0; for (int i = 0; i < c->n; i++) *n += !c->d[i].is_mig && !c->d[i].gone;
    DONE(OK);
}
API ret_t nvmlDeviceGetHandleByIndex_v2(uint i, dev_t_ *h) {
    if (!ready()) return UNINIT;
    struct conf *c = malloc(sizeof *c); if (!c) return 20; load(c);
    IN_TIME; int s = plain(c, i);
    if (s < 0) DONE(BAD_ARG);
    if (c->d[s].handle_error) DONE(c->d[s].handle_error);
    *h = &handles[s]; DONE(OK);
}
API ret_t nvmlDeviceGetHandleByUUID(const char *u, dev_t_ *h) {
    if (!ready()) return UNINIT;
    struct conf *c = malloc(sizeof *c); if (!c) return 20; load(c);
    for (int i = 0; i < c->n; i++)
        if (!strcmp(c->d[i].uuid, u)) {
            if (c->d[i].handle_error) DONE(c->d[i].handle_error);
            *h = &handles[i]; DONE(OK);
        }
    DONE(NOT_FOUND);
}
API ret_t nvmlDeviceGetHandleByPciBusId_v2(const char *p, dev_t_ *h) {
    if (!ready()) return UNINIT;
    struct conf *c = malloc(sizeof *c); if (!c) return 20; load(c);
    for (int i = 0; i < c->n; i++)
        if (!c->d[i].is_mig && !strcasecmp(c->d[i].pci, p)) { *h = &handles[i]; DONE(OK); }
    DONE(NOT_FOUND);
}
API ret_t nvmlDeviceGetIndex(dev_t_ h, uint *i) {
    HEAD(h); *i = 0; for (int s = 0; s < slot; s++) *i += !c->d[s].is_mig; DONE(D->is_mig ? NOT_SUP : OK);
}
API ret_t nvmlDeviceGetUUID(dev_t_ h, char *s, uint n) { HEAD(h); snprintf(s, n, "%s", D->uuid); DONE(OK); }
API ret_t nvmlDeviceGetName(dev_t_ h, char *s, uint n) { HEAD(h); snprintf(s, n, "%s", D->name); DONE(OK); }
API ret_t nvmlDeviceGetComputeMode(dev_t_ h, uint *m) { HEAD(h); if (D->mode_error) DONE(D->mode_error); *m = (uint)D->compute_mode; DONE(OK); }
API ret_t nvmlDeviceGetTemperature(dev_t_ h, uint kind, uint *t) { (void)kind; HEAD(h); if (D->temp_error) DONE(D->temp_error); *t = D->temp; DONE(OK); }

struct pci { char legacy[16]; uint domain, bus, device, id, sub; char bus_id[32]; };
API ret_t nvmlDeviceGetPciInfo_v3(dev_t_ h, struct pci *p) {
    HEAD(h); memset(p, 0, sizeof *p);
    snprintf(p->bus_id, sizeof p->bus_id, "%s", D->pci);
    sscanf(D->pci, "%x:%x:%x", &p->domain, &p->bus, &p->device);
    snprintf(p->legacy, sizeof p->legacy, "%04X:%02X:%02X.0", p->domain & 0xffff, p->bus & 0xff, p->device & 0xff);
    DONE(OK);
}
struct mem1 { ull total, free, used; };
struct mem2 { uint version; ull total, reserved, free, used; };
/* v1 counts the driver's reserved memory as used; v2 tells it apart.  NVIDIA's own texts
   disagree on whether v2's used holds reserved (R525: yes), so callers should trust free. */
API ret_t nvmlDeviceGetMemoryInfo(dev_t_ h, struct mem1 *m) {
    HEAD(h); if (D->mem_error) DONE(D->mem_error);
    ull busy = D->used + D->reserved;
    m->total = D->total; m->used = busy; m->free = D->total > busy ? D->total - busy : 0; DONE(OK);
}
API ret_t nvmlDeviceGetMemoryInfo_v2(dev_t_ h, struct mem2 *m) {
    HEAD(h); if (D->mem_error) DONE(D->mem_error);
    if (D->no_v2) DONE(NOT_SUP);
    if (m->version != (sizeof(struct mem2) | 2u << 24)) DONE(VERSION);
    ull busy = D->used + D->reserved;
    m->total = D->total; m->reserved = D->reserved; m->used = D->used;
    m->free = D->total > busy ? D->total - busy : 0; DONE(OK);
}
struct util { uint gpu, memory; };
API ret_t nvmlDeviceGetUtilizationRates(dev_t_ h, struct util *u) {
    HEAD(h); if (D->util_error) DONE(D->util_error);
    if (D->is_mig || D->mig_mode || has_mig(c, slot)) DONE(NOT_SUP);
    u->gpu = D->util; u->memory = D->memutil; DONE(OK);
}
struct proc { uint pid; ull mem; uint gi, ci; };
API ret_t nvmlDeviceGetComputeRunningProcesses_v3(dev_t_ h, uint *n, struct proc *p) {
    HEAD(h); if (D->proc_error) DONE(D->proc_error);
    if (!p || *n < (uint)D->nproc) { *n = (uint)D->nproc; DONE(D->nproc ? TOO_SMALL : OK); }
    for (int i = 0; i < D->nproc; i++) p[i] = (struct proc){ D->pid[i], D->mem[i], ~0u, ~0u };
    *n = (uint)D->nproc; DONE(OK);
}
API ret_t nvmlDeviceGetMigMode(dev_t_ h, uint *cur, uint *pend) { HEAD(h); *cur = *pend = (uint)(D->mig_mode || has_mig(c, slot)); DONE(OK); }
API ret_t nvmlDeviceGetMaxMigDeviceCount(dev_t_ h, uint *n) { HEAD(h); *n = D->mig_mode || has_mig(c, slot) ? 7 : 0; DONE(OK); }
API ret_t nvmlDeviceIsMigDeviceHandle(dev_t_ h, uint *is) { HEAD(h); *is = (uint)D->is_mig; DONE(OK); }
API ret_t nvmlDeviceGetMigDeviceHandleByIndex(dev_t_ h, uint i, dev_t_ *out) {
    HEAD(h); int idx = 0;
    for (int s = 0; s < slot; s++) idx += !c->d[s].is_mig;
    for (int s = 0; s < c->n; s++)
        if (c->d[s].is_mig && c->d[s].parent == idx && i-- == 0) { *out = &handles[s]; DONE(OK); }
    DONE(NOT_FOUND);
}
API ret_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(dev_t_ h, dev_t_ *out) {
    HEAD(h); int s = D->is_mig && D->parent >= 0 ? plain(c, (uint)D->parent) : -1;
    if (s < 0) DONE(BAD_ARG);
    *out = &handles[s]; DONE(OK);
}

struct event { dev_t_ device; ull type, data; uint gi, ci; };
static int told[MAXDEV];           /* the last Xid that was told of a device */
API ret_t nvmlEventSetCreate(dev_t_ *set) { *set = told; return ready() ? OK : UNINIT; }
API ret_t nvmlDeviceRegisterEvents(dev_t_ h, ull types, dev_t_ set) { (void)types; (void)set; HEAD(h); DONE(D->register_error ? D->register_error : OK); }
API ret_t nvmlEventSetWait_v2(dev_t_ set, struct event *e, uint ms) {
    (void)set; (void)ms;
    struct conf *c = malloc(sizeof *c); if (!c) return 20; load(c); IN_TIME;
    for (int s = 0; s < c->n; s++)
        if (c->d[s].xid != told[s]) {
            told[s] = c->d[s].xid;
            if (told[s]) { *e = (struct event){ &handles[s], 8, (ull)told[s], ~0u, ~0u }; DONE(OK); }
        }
    DONE(10);                      /* TIMEOUT */
}
