/* A pretended libnvidia-ml.so.1: any number of GPUs, whose state is a file that a test may write while others read.
 *
 * FAKE_NVML_STATE names the file; it is read anew at every call. Its lines:
 *     count=2            GPUs on the bus
 *     init_error=9       nvmlInit fails with this code
 *     hang=1             every call waits until the line is gone
 *     driver=580.65.06   version of the driver, and the newest CUDA that it speaks: cuda=13000 is 13.0
 *     0.KEY=VALUE        of GPU 0: name uuid total_mib used_mib utilization temperature power_watts clock_mhz fan
 *                        throttle (NVML's bits) ecc (uncorrected errors; absent: not supported)
 *                        xid (number:code; a new number is a new event) processes (pid:bytes,pid:bytes)
 *                        capability (12.0)
 *                        error (every query of this GPU fails with this code: 15 is GPU_IS_LOST)
 * Layouts and names come from NVIDIA's own nvml.h. What is not here, nvidia-ml-py reports as FUNCTION_NOT_FOUND.
 */
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB(x) ((unsigned long long)(x) << 20)
#define INDEX(device) ((int)(long)(device) - 1)
#define DEVICE(index) ((nvmlDevice_t)(long)((index) + 1))

static int started;

static int look_up(const char *key, char *out, size_t size) {
  const char *path = getenv("FAKE_NVML_STATE");
  FILE *file = path ? fopen(path, "re") : NULL;
  char line[2048];
  size_t length = strlen(key);
  int found = 0;
  if (!file) return 0;
  while (fgets(line, sizeof line, file))
    if (!strncmp(line, key, length) && line[length] == '=') {
      line[strcspn(line, "\n")] = 0;
      snprintf(out, size, "%s", line + length + 1);
      found = 1;
    }
  fclose(file);
  return found;
}

static int text_of(nvmlDevice_t device, const char *key, char *out, size_t size) {
  char full[64];
  snprintf(full, sizeof full, "%d.%s", INDEX(device), key);
  return look_up(full, out, size);
}

static long long number_of(nvmlDevice_t device, const char *key, long long otherwise) {
  char text[64];
  return text_of(device, key, text, sizeof text) ? atoll(text) : otherwise;
}

static int count(void) {
  char text[16];
  return look_up("count", text, sizeof text) ? atoi(text) : 0;
}

static void hang(void) {
  char text[16];
  while (look_up("hang", text, sizeof text)) usleep(20000);
}

static nvmlReturn_t ready(void) {
  hang();
  return started ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

static nvmlReturn_t check(nvmlDevice_t device) {
  nvmlReturn_t result = ready();
  if (result != NVML_SUCCESS) return result;
  if (INDEX(device) < 0 || INDEX(device) >= 64) return NVML_ERROR_INVALID_ARGUMENT;
  return (nvmlReturn_t)number_of(device, "error", INDEX(device) < count() ? NVML_SUCCESS : NVML_ERROR_GPU_IS_LOST);
}

#define CHECK(device)                                                                                                  \
  do {                                                                                                                 \
    nvmlReturn_t result_ = check(device);                                                                              \
    if (result_ != NVML_SUCCESS) return result_;                                                                       \
  } while (0)

nvmlReturn_t nvmlInit_v2(void) {
  char text[16];
  hang();
  if (look_up("init_error", text, sizeof text)) return (nvmlReturn_t)atoi(text);
  started++;
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
nvmlReturn_t nvmlShutdown(void) {
  if (!started) return NVML_ERROR_UNINITIALIZED;
  started--;
  return NVML_SUCCESS;
}
const char *nvmlErrorString(nvmlReturn_t code) { return code == NVML_ERROR_GPU_IS_LOST ? "GPU is lost" : "an error"; }

/* -- the driver */

nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned size) {
  char text[64] = "580.65.06";
  look_up("driver", text, sizeof text);
  snprintf(out, size, "%s", text);
  return ready();
}
nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *out) {
  char text[16] = "13000";
  look_up("cuda", text, sizeof text);
  *out = atoi(text);
  return ready();
}

/* -- which GPUs there are */

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *out) {
  nvmlReturn_t result = ready();
  *out = count();
  return result;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *out) {
  if ((int)index >= count()) return NVML_ERROR_INVALID_ARGUMENT;
  *out = DEVICE(index);
  return ready();
}
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned size) {
  CHECK(device);
  if (!text_of(device, "uuid", out, size)) snprintf(out, size, "GPU-00000000-0000-0000-0000-%012d", INDEX(device));
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *wanted, nvmlDevice_t *out) {
  nvmlReturn_t result = ready();
  if (result != NVML_SUCCESS) return result;
  for (int index = 0; index < count(); index++) {
    char uuid[96];
    if (nvmlDeviceGetUUID(DEVICE(index), uuid, sizeof uuid) == NVML_SUCCESS && !strcmp(uuid, wanted)) {
      *out = DEVICE(index);
      return NVML_SUCCESS;
    }
  }
  return NVML_ERROR_NOT_FOUND;
}
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned size) {
  CHECK(device);
  if (!text_of(device, "name", out, size)) snprintf(out, size, "NVIDIA GeForce RTX 3090");
  return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
  char text[16] = "8.6";
  CHECK(device);
  text_of(device, "capability", text, sizeof text);
  return sscanf(text, "%d.%d", major, minor) == 2 ? NVML_SUCCESS : NVML_ERROR_UNKNOWN;
}

/* -- figures */

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *out) {
  CHECK(device);
  out->total = MIB(number_of(device, "total_mib", 24576));
  out->used = MIB(number_of(device, "used_mib", 500));
  out->free = out->total - out->used;
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *out) {
  CHECK(device);
  out->gpu = number_of(device, "utilization", 0);
  out->memory = 0;
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned *out) {
  (void)sensor;
  CHECK(device);
  *out = number_of(device, "temperature", 40);
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t kind, unsigned *out) {
  CHECK(device);
  *out = kind == NVML_TEMPERATURE_THRESHOLD_SLOWDOWN ? 95 : 98;
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *out) {
  CHECK(device);
  *out = 1000 * number_of(device, "power_watts", 30);
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned *out) {
  CHECK(device);
  *out = 350000;
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned *out) {
  CHECK(device);
  *out = type == NVML_CLOCK_MEM ? 9751 : number_of(device, "clock_mhz", 1695);
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned *out) {
  CHECK(device);
  *out = type == NVML_CLOCK_MEM ? 9751 : 2100;
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned *out) {
  CHECK(device);
  *out = number_of(device, "fan", 30);
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *out) {
  CHECK(device);
  *out = number_of(device, "throttle", 0);
  return NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t type, nvmlEccCounterType_t since,
                                         unsigned long long *out) {
  (void)since;
  CHECK(device);
  long long errors = number_of(device, "ecc", -1);
  if (errors < 0) return NVML_ERROR_NOT_SUPPORTED;
  *out = type == NVML_MEMORY_ERROR_TYPE_UNCORRECTED ? errors : 0;
  return NVML_SUCCESS;
}

/* -- processes */

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *size, nvmlProcessInfo_t *out) {
  char text[1024] = "";
  unsigned found = 0, room = *size;
  CHECK(device);
  text_of(device, "processes", text, sizeof text);
  for (char *rest, *entry = strtok_r(text, ",", &rest); entry; entry = strtok_r(NULL, ",", &rest)) {
    unsigned pid;
    unsigned long long bytes;
    if (sscanf(entry, "%u:%llu", &pid, &bytes) != 2) continue;
    if (found < room) {
      memset(&out[found], 0, sizeof *out);
      out[found].pid = pid;
      out[found].usedGpuMemory = bytes;
    }
    found++;
  }
  *size = found;
  return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned *size, nvmlProcessInfo_t *out) {
  (void)out;
  CHECK(device);
  *size = 0;
  return NVML_SUCCESS;
}

/* -- events */

struct events {
  nvmlDevice_t device;
  unsigned long long seen;
};

static int xid_of(nvmlDevice_t device, unsigned long long *number, unsigned long long *code) {
  char text[64];
  return text_of(device, "xid", text, sizeof text) && sscanf(text, "%llu:%llu", number, code) == 2;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *out) {
  *out = (nvmlEventSet_t)calloc(1, sizeof(struct events));
  return ready();
}
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
  struct events *events = (struct events *)set;
  unsigned long long number, code;
  (void)types;
  CHECK(device);
  events->device = device;
  events->seen = xid_of(device, &number, &code) ? number : 0;
  return NVML_SUCCESS;
}
/* The wait of the real one is left out: the reader only ever asks for what is there. */
nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *out, unsigned milliseconds) {
  struct events *events = (struct events *)set;
  unsigned long long number, code;
  (void)milliseconds;
  hang();
  if (!xid_of(events->device, &number, &code) || number <= events->seen) return NVML_ERROR_TIMEOUT;
  events->seen = number;
  memset(out, 0, sizeof *out);
  out->device = events->device;
  out->eventType = nvmlEventTypeXidCriticalError;
  out->eventData = code;
  return NVML_SUCCESS;
}
