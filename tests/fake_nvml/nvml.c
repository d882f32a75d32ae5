/* A libnvidia-ml.so.1 without GPUs: answers the calls of scaletrain/hardware/nvml.py from a text file.
 *
 * FAKE_NVML names the file, and "%h" in it the machine. A test puts another one in its place while a process runs, and
 * the next call sees it. Lines:
 *
 *   gpus=8                  how many there are
 *   init=9                  what nvmlInit returns
 *   driver=570.86           version of the driver
 *   cuda=12080              version of CUDA that it supports, here 12.8
 *   nvmlDeviceGetCount_v2=9 what that call returns
 *   3.temperature=91        a value of GPU 3; *.temperature=91 of all that have none of their own
 *   3.link5.crc=7           a value of one of its links
 *   3.nvmlDeviceGetX=4      what that call returns for it, instead of an answer
 *   3.lost=1                each call to it returns GPU_IS_LOST; 3.reset=1: RESET_REQUIRED
 *   3.hang=nvmlDeviceGetX   that call does not return until the line is gone; 3.hang=all: none does. Without a number:
 *   hang=nvmlInitWithFlags  a call that is about no GPU
 *   events=15               what waiting for events returns
 *   event=3.79              XID 79 of GPU 3: told once to each set of events that was made before the line
 *
 * With OLD_DRIVER the newer functions are left out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_GPUS 32
enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15, RESET_REQUIRED = 16 };

typedef unsigned long long count_t;
static int device[MAX_GPUS];

/* The file's lines, read again where another file has taken its place. */
static const char *content(void) {
    static char text[1 << 16];
    static struct stat known;
    const char *name = getenv("FAKE_NVML"), *place = name ? strstr(name, "%h") : 0;
    char path[4096], host[256] = "";
    struct stat now;
    FILE *file;
    if (place) gethostname(host, sizeof host);
    snprintf(path, sizeof path, "%.*s%s%s", name ? (int)(place ? place - name : strlen(name)) : 0, name ? name : "", host,
             place ? place + 2 : "");
    if (stat(path, &now)) return "";
    if (now.st_ino == known.st_ino && now.st_size == known.st_size && now.st_mtim.tv_sec == known.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == known.st_mtim.tv_nsec)
        return text;
    if (!(file = fopen(path, "r"))) return "";
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    known = now;
    return text;
}

static int find(const char *key, char *value, int size) {
    size_t length = strlen(key);
    const char *line;
    for (line = content(); *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (strncmp(line, key, length) == 0 && line[length] == '=') {
            line += length + 1;
            snprintf(value, (size_t)size, "%.*s", (int)strcspn(line, "\n"), line);
            return 1;
        }
    return 0;
}

static int number(const char *key, count_t *value) {
    char text[128];
    if (!find(key, text, sizeof text)) return 0;
    *value = (count_t)strtoll(text, NULL, 0);
    return 1;
}

/* The value of a GPU, of all GPUs, or the given one. */
static count_t value_of(int gpu, const char *name, count_t otherwise) {
    char key[128];
    count_t value;
    snprintf(key, sizeof key, "%d.%s", gpu, name);
    if (number(key, &value)) return value;
    snprintf(key, sizeof key, "*.%s", name);
    return number(key, &value) ? value : otherwise;
}

static int is_told(int gpu, const char *name) { return value_of(gpu, name, 1) == value_of(gpu, name, 0); }

static count_t link_value(int gpu, unsigned link, const char *name, count_t otherwise) {
    char key[128];
    snprintf(key, sizeof key, "link%u.%s", link, name);
    return value_of(gpu, key, otherwise);
}

static void hang(int gpu, const char *call) {
    char key[64], wanted[128];
    if (gpu < 0) snprintf(key, sizeof key, "hang");
    else snprintf(key, sizeof key, "%d.hang", gpu);
    while (find(key, wanted, sizeof wanted) && (!strcmp(wanted, "all") || !strcmp(wanted, call))) usleep(20000);
}

/* What every call about a GPU does first. */
static int begin(int gpu, const char *call) {
    hang(gpu, call);
    if (value_of(gpu, "lost", 0)) return GPU_IS_LOST;
    if (value_of(gpu, "reset", 0)) return RESET_REQUIRED;
    return (int)value_of(gpu, call, SUCCESS);
}

#define CALL(name, ...)                                                \
    int name(void *handle, __VA_ARGS__) {                              \
        int gpu = *(int *)handle, failed = begin(gpu, #name);          \
        if (failed) return failed;
#define DONE return SUCCESS; }
/* A call that tells one unsigned number. */
#define NUMBER(name, key, otherwise) CALL(name, unsigned *out) *out = (unsigned)value_of(gpu, key, otherwise); DONE

int nvmlInitWithFlags(unsigned flags) {
    count_t code = SUCCESS;
    int gpu;
    (void)flags;
    hang(-1, "nvmlInitWithFlags");
    for (gpu = 0; gpu < MAX_GPUS; gpu++) device[gpu] = gpu;
    number("init", &code);
    return (int)code;
}
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) {
    static char text[64];
    if (code == GPU_IS_LOST) return "GPU is lost";
    if (code == RESET_REQUIRED) return "GPU requires reset";
    snprintf(text, sizeof text, "error %d of the fake driver", code);
    return text;
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    if (!find("driver", out, (int)size)) snprintf(out, size, "575.51.03");
    return SUCCESS;
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    count_t version = 12090;
    number("cuda", &version);
    *out = (int)version;
    return SUCCESS;
}
int nvmlDeviceGetCount_v2(unsigned *out) {
    count_t gpus = 1, code = SUCCESS;
    hang(-1, "nvmlDeviceGetCount_v2");
    number("gpus", &gpus);
    number("nvmlDeviceGetCount_v2", &code);
    *out = (unsigned)gpus;
    return (int)code;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    int failed = begin((int)index, "nvmlDeviceGetHandleByIndex_v2");
    if (failed == RESET_REQUIRED) failed = SUCCESS;
    if (!failed) *handle = &device[index];
    return failed;
}

CALL(nvmlDeviceGetUUID, char *out, unsigned size) snprintf(out, size, "GPU-00000000-0000-0000-0000-%012llx", value_of(gpu, "uuid", (count_t)gpu)); DONE
CALL(nvmlDeviceGetSerial, char *out, unsigned size) snprintf(out, size, "16501230%05d", gpu); DONE
CALL(nvmlDeviceGetName, char *out, unsigned size) snprintf(out, size, "NVIDIA Fake 80GB"); DONE

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
CALL(nvmlDeviceGetPciInfo_v3, struct pci *out)
    memset(out, 0, sizeof *out);
    out->bus = (unsigned)(0x0f + gpu);
    snprintf(out->legacy, sizeof out->legacy, "0000:%02X:00.0", out->bus);
    snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", out->bus);
DONE

CALL(nvmlDeviceGetTemperature, int sensor, unsigned *out) (void)sensor; *out = (unsigned)value_of(gpu, "temperature", 41); DONE
CALL(nvmlDeviceGetTemperatureThreshold, int kind, unsigned *out)
    static const char *const names[] = {"shutdown_temperature", "slowdown_temperature", "max_memory_temperature", "max_temperature"};
    static const unsigned usual[] = {92, 89, 95, 87};
    if (kind < 0 || kind > 3) return INVALID;
    *out = (unsigned)value_of(gpu, names[kind], usual[kind]);
DONE
NUMBER(nvmlDeviceGetPowerUsage, "power", 71500)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power_limit", 700000)
CALL(nvmlDeviceGetClockInfo, int kind, unsigned *out) *out = (unsigned)value_of(gpu, kind == 2 ? "memory_clock" : "clock", kind == 2 ? 2619 : 1980); DONE
CALL(nvmlDeviceGetMaxClockInfo, int kind, unsigned *out) *out = (unsigned)value_of(gpu, kind == 2 ? "max_memory_clock" : "max_clock", kind == 2 ? 2619 : 1980); DONE
CALL(nvmlDeviceGetCurrentClocksThrottleReasons, count_t *out) *out = value_of(gpu, "reasons", 1); DONE
CALL(nvmlDeviceGetUtilizationRates, unsigned *out) out[0] = (unsigned)value_of(gpu, "utilization", 0); out[1] = 0; DONE

CALL(nvmlDeviceGetEccMode, unsigned *now, unsigned *pending) *now = *pending = (unsigned)value_of(gpu, "ecc", 1); DONE
static const char *const COUNTERS[] = {"volatile", "aggregate"}, *const KINDS[] = {"corrected", "uncorrected"};
CALL(nvmlDeviceGetTotalEccErrors, int kind, int counter, count_t *out)
    char name[64];
    snprintf(name, sizeof name, "%s_%s", COUNTERS[counter], KINDS[kind]);
    *out = value_of(gpu, name, 0);
DONE
CALL(nvmlDeviceGetMemoryErrorCounter, int kind, int counter, int location, count_t *out)
    char name[64];
    if (location != 2 && location != 7) return NOT_SUPPORTED;
    snprintf(name, sizeof name, "%s_%s_%s", COUNTERS[counter], location == 7 ? "sram" : "dram", KINDS[kind]);
    *out = value_of(gpu, name, 0);
DONE
CALL(nvmlDeviceGetRetiredPages, int cause, unsigned *count, count_t *pages)
    unsigned there = (unsigned)value_of(gpu, cause ? "pages_double_bit" : "pages_single_bit", 0), i, room = *count;
    *count = there;
    if (!pages || room < there) return there ? INSUFFICIENT_SIZE : SUCCESS;
    for (i = 0; i < there; i++) pages[i] = i << 12;
DONE
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, "pages_pending", 0)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation", 5)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "max_pcie_generation", 5)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width", 16)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "max_pcie_width", 16)
NUMBER(nvmlDeviceGetPcieReplayCounter, "pcie_replays", 0)
CALL(nvmlDeviceGetMigMode, unsigned *now, unsigned *pending) *now = *pending = (unsigned)value_of(gpu, "mig", 0); DONE

CALL(nvmlDeviceGetNvLinkState, unsigned link, unsigned *out)
    if (link >= value_of(gpu, "links", 4)) return INVALID;
    *out = (unsigned)link_value(gpu, link, "active", 1);
DONE
CALL(nvmlDeviceGetNvLinkErrorCounter, unsigned link, unsigned kind, count_t *out)
    static const char *const names[] = {"replays", "recoveries", "crc", "crc_data"};
    if (link >= value_of(gpu, "links", 4) || kind > 3) return INVALID;
    *out = link_value(gpu, link, names[kind], 0);
DONE

struct field { unsigned id, scope; long long time_us, latency_us; unsigned type, code; count_t value; };
/* Fields that are about the GPU are told where the file names them, but the first. */
static void tell_field(int gpu, struct field *field) {
    static const struct { unsigned id; const char *name; } own[] = {
        {230, "recovery_action"}, {82, "memory_temperature"}, {193, "shutdown_tlimit"}, {194, "slowdown_tlimit"},
        {195, "max_memory_tlimit"}, {196, "max_tlimit"}};
    static const char *const of_link[] = {"replays", "recoveries", "crc"};
    size_t i;
    field->type = 1;
    field->code = NOT_SUPPORTED;
    for (i = 0; i < sizeof own / sizeof *own; i++)
        if (own[i].id == field->id && (i == 0 || is_told(gpu, own[i].name))) {
            field->code = (unsigned)value_of(gpu, "field_code", SUCCESS);
            field->value = value_of(gpu, own[i].name, 0);
            if ((long long)field->value < 0) field->type = 5;
        }
    if (field->id >= 161 && field->id <= 163 && field->scope < value_of(gpu, "links", 4) && !value_of(gpu, "old_links", 0)) {
        field->type = 3;
        field->code = SUCCESS;
        field->value = link_value(gpu, field->scope, of_link[field->id - 161], 0);
    }
    if (field->id == 215 && is_told(gpu, "blackwell")) {
        field->type = 3;
        field->code = SUCCESS;
        field->value = link_value(gpu, field->scope, "recoveries", 0);
    }
}
CALL(nvmlDeviceGetFieldValues, int count, struct field *fields)
    int i;
    for (i = 0; i < count; i++) tell_field(gpu, &fields[i]);
DONE

struct process { unsigned pid; count_t memory; unsigned instance, compute_instance; };
static int tell_processes(int gpu, unsigned *count, struct process *out) {
    unsigned there = (unsigned)value_of(gpu, "processes", 0), i, room = *count;
    *count = there;
    if (!there) return SUCCESS;
    if (!out || room < there) return INSUFFICIENT_SIZE;
    for (i = 0; i < there; i++) {
        out[i].pid = (unsigned)value_of(gpu, "pid", 4000) + i;
        out[i].memory = 1ull << 30;
        out[i].instance = out[i].compute_instance = 0xffffffff;
    }
    return SUCCESS;
}
CALL(nvmlDeviceGetComputeRunningProcesses_v2, unsigned *count, struct process *out) return tell_processes(gpu, count, out); }
CALL(nvmlDeviceGetMemoryInfo, count_t *out)
    out[0] = 80ull << 30; out[2] = (600ull + value_of(gpu, "memory_mib", 0)) << 20; out[1] = out[0] - out[2];
DONE

#ifndef OLD_DRIVER
struct memory { unsigned version; count_t total, reserved, free, used; };
CALL(nvmlDeviceGetMemoryInfo_v2, struct memory *out)
    out->total = 80ull << 30;
    out->reserved = 600ull << 20;
    out->used = value_of(gpu, "memory_mib", 0) << 20;
    out->free = out->total - out->reserved - out->used;
DONE
CALL(nvmlDeviceGetComputeRunningProcesses_v3, unsigned *count, struct process *out) return tell_processes(gpu, count, out); }
CALL(nvmlDeviceGetCurrentClocksEventReasons, count_t *out) *out = value_of(gpu, "reasons", 1); DONE
struct margin { unsigned version; int margin; };
CALL(nvmlDeviceGetMarginTemperature, struct margin *out)
    if (!is_told(gpu, "margin")) return NOT_SUPPORTED;
    out->margin = (int)value_of(gpu, "margin", 0);
DONE
CALL(nvmlDeviceGetRemappedRows, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failure)
    *corrected = (unsigned)value_of(gpu, "rows_corrected", 0);
    *uncorrected = (unsigned)value_of(gpu, "rows_uncorrected", 0);
    *pending = (unsigned)value_of(gpu, "rows_pending", 0);
    *failure = (unsigned)value_of(gpu, "rows_failed", 0);
DONE
struct sram { unsigned version; count_t counts[11]; unsigned exceeded; };
CALL(nvmlDeviceGetSramEccErrorStatus, struct sram *out) out->exceeded = (unsigned)value_of(gpu, "sram_exceeded", 0); DONE
#endif

/* A set of events is the number of those in the file that it has told, or was made after. */
static int read_event(unsigned wanted, int *gpu, int *code) {
    unsigned seen = 0;
    const char *line;
    for (line = content(); *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (sscanf(line, "event=%d.%d", gpu, code) == 2 && seen++ == wanted) return 1;
    return 0;
}
int nvmlEventSetCreate(void **set) {
    int gpu, code;
    unsigned *told = (unsigned *)calloc(1, sizeof *told);
    while (read_event(*told, &gpu, &code)) ++*told;
    *set = told;
    return SUCCESS;
}
int nvmlEventSetFree(void *set) { free(set); return SUCCESS; }
CALL(nvmlDeviceGetSupportedEventTypes, count_t *out) *out = 8 | 1; DONE
CALL(nvmlDeviceRegisterEvents, count_t kinds, void *set) (void)kinds; (void)set; DONE
struct event { void *handle; count_t kind, data; unsigned instance, compute_instance; };
int nvmlEventSetWait_v2(void *set, struct event *out, unsigned timeout_ms) {
    int gpu, code;
    count_t failed = SUCCESS;
    (void)timeout_ms;
    if (number("events", &failed)) return (int)failed;
    if (!read_event(*(unsigned *)set, &gpu, &code)) return TIMEOUT;
    ++*(unsigned *)set;
    out->handle = &device[gpu];
    out->kind = 8;
    out->data = (count_t)code;
    return SUCCESS;
}
