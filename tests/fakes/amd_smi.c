/* A pretended libamd_smi.so: two GPUs whose figures stand below. Layouts are those of the package amdsmi 7.0.2, which
 * brings no header. The symbols that it wants besides are made by tests/fakes/gpus.py, and say "not supported".
 * FAKE_AMD_SMI_GONE=1: the second GPU does not answer any more.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 2, NOT_FOUND = 31 };

typedef void *handle;
#define INDEX(gpu) ((int)(intptr_t)(gpu) - 1)

int amdsmi_init(uint64_t flags) { (void)flags; return SUCCESS; }
int amdsmi_shut_down(void) { return SUCCESS; }

/* One socket holds all. */
int amdsmi_get_socket_handles(uint32_t *count, handle *out) {
  if (out) out[0] = (handle)1;
  *count = 1;
  return SUCCESS;
}
int amdsmi_get_processor_handles(handle socket, uint32_t *count, handle *out) {
  (void)socket;
  for (int index = 0; out && index < 2; index++) out[index] = (handle)(intptr_t)(index + 1);
  *count = 2;
  return SUCCESS;
}
int amdsmi_get_gpu_device_uuid(handle gpu, unsigned *size, char *out) {
  *size = snprintf(out, *size, "%02xff74a1-0000-1000-8000-000000000000", INDEX(gpu));
  return SUCCESS;
}

struct asic { char name[256]; uint32_t vendor; char vendor_name[256]; uint32_t subvendor; uint64_t device; uint32_t revision;
              char serial[256]; uint32_t oam, units; uint64_t target; uint32_t subsystem, reserved[21]; };
int amdsmi_get_gpu_asic_info(handle gpu, struct asic *out) {
  memset(out, 0, sizeof *out);
  strcpy(out->name, "AMD Instinct MI300X");
  snprintf(out->serial, sizeof out->serial, "0xabc%d", INDEX(gpu));
  return SUCCESS;
}

struct vram { uint32_t total_mib, used_mib, reserved[2]; };
int amdsmi_get_gpu_vram_usage(handle gpu, struct vram *out) {
  if (INDEX(gpu) == 1 && getenv("FAKE_AMD_SMI_GONE")) return NOT_FOUND;
  *out = (struct vram){196592, INDEX(gpu) ? 150000 : 300, {0}};
  return SUCCESS;
}

struct activity { uint32_t gfx, umc, mm, reserved[13]; };
int amdsmi_get_gpu_activity(handle gpu, struct activity *out) {
  *out = (struct activity){INDEX(gpu) ? 87 : 0, 0, 0xFFFF, {0}};
  return SUCCESS;
}

struct power { uint64_t socket; uint32_t current, average; uint64_t voltages[3]; uint32_t limit, padding; uint64_t reserved[18]; };
int amdsmi_get_power_info(handle gpu, struct power *out) {
  (void)gpu;
  *out = (struct power){0, 0xFFFF, 612, {0}, 750, 0, {0}};  /* the present power is not told, the mean is */
  return SUCCESS;
}

struct clock { uint32_t now, lowest, highest; uint8_t locked, asleep, padding[2]; uint32_t reserved[4]; };
int amdsmi_get_clock_info(handle gpu, int kind, struct clock *out) {
  (void)gpu;
  (void)kind;
  *out = (struct clock){1900, 132, 2100, 0, 0, {0}, {0}};
  return SUCCESS;
}

int amdsmi_get_temp_metric(handle gpu, int sensor, int metric, int64_t *out) {
  (void)gpu;
  if (sensor != 1) return NOT_SUPPORTED;  /* the hottest spot is all that there is */
  *out = metric == 5 ? 110 : 64;
  return SUCCESS;
}

struct __attribute__((packed)) process { char name[256]; uint32_t pid, padding; uint64_t memory, engines[2]; uint32_t more[12];
                 uint64_t gtt, cpu, vram; uint32_t rest[10]; char container[256]; uint32_t occupancy, reserved[11]; };
int amdsmi_get_gpu_process_list(handle gpu, uint32_t *count, struct process *out) {
  (void)gpu;
  memset(out, 0, 2 * sizeof *out);
  out[0].pid = getpid();
  out[0].vram = 5000;
  out[1].pid = 1;
  out[1].vram = 700;
  *count = 2;
  return SUCCESS;
}
