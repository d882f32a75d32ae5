/* Answers the calls that the node check makes, as two healthy GPUs, and as the file named by FAKE_NVML says otherwise:
 * words such as "count=1", "lost=1", "pending=0", "failed=1", "ecc=1", "unsupported=0", "denied=1", "shared=0" (its
 * memory is the host's), "stuck=1", "unloaded". Each names a GPU, but the first and the last. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };
static int device[2] = {0, 1};

static int is_set(const char *word, int gpu) {
    char text[512] = "", wanted[64];
    FILE *file = fopen(getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "", "r");
    if (!file) return 0;
    if (!fgets(text, sizeof text, file)) text[0] = 0;
    fclose(file);
    if (gpu < 0) snprintf(wanted, sizeof wanted, "%s", word);
    else snprintf(wanted, sizeof wanted, "%s=%d", word, gpu);
    return strstr(text, wanted) != NULL;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return is_set("unloaded", -1) ? DRIVER_NOT_LOADED : SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "Not Supported"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = is_set("count", 1) ? 1 : 2; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (is_set("lost", (int)index)) return GPU_IS_LOST;
    while (is_set("stuck", (int)index)) sleep(1);
    *handle = &device[index];
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    if (is_set("shared", *(int *)handle)) return NOT_SUPPORTED;
    memory[0] = 80ull << 30; memory[1] = 79ull << 30; memory[2] = 1ull << 30;
    return SUCCESS;
}
int nvmlDeviceGetRemappedRows(void *handle, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    int gpu = *(int *)handle;
    if (is_set("unsupported", gpu)) return NOT_SUPPORTED;
    *corrected = *uncorrected = 0;
    *pending = (unsigned)is_set("pending", gpu);
    *failed = (unsigned)is_set("failed", gpu);
    return SUCCESS;
}
int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *errors) {
    (void)kind; (void)counter;
    if (is_set("unsupported", *(int *)handle)) return NOT_SUPPORTED;
    if (is_set("denied", *(int *)handle)) return NO_PERMISSION;
    *errors = (unsigned long long)(3 * is_set("ecc", *(int *)handle));
    return SUCCESS;
}
