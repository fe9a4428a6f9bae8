#include "emulator/cuda_runtime_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/step.h"
#include "emulator/simt.h"

/* Small, so that a few thousand ids already need all of them. */
enum { SMS = 12 };
static std::atomic<int> shared_bytes_of_block{227 << 10};

struct captured_work {
    std::vector<std::function<void()>> work;
    bool active;
};

struct emulated_graph {
    std::shared_ptr<captured_work> captured;
};
struct emulated_stream {
    std::shared_ptr<captured_work> capture; /* NULL or not active: none */
    bool origin;
};
struct emulated_event {
    std::shared_ptr<captured_work> capture;
};

static bool is_captured(cudaStream_t stream) {
    return stream && stream->capture && stream->capture->active;
}

static cudaError_t submit(cudaStream_t stream, std::function<void()> work) {
    if (is_captured(stream)) stream->capture->work.push_back(work);
    else work();
    return cudaSuccess;
}

void emulated_shared_bytes(int bytes) { shared_bytes_of_block = bytes; }

static std::atomic<bool> has_driver{true};
void emulated_driver(int is_there) { has_driver = is_there; }

cudaError_t cudaGetDeviceCount(int *count) {
    *count = has_driver;
    return has_driver ? cudaSuccess : cudaErrorInsufficientDriver;
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int) {
    const int values[] = {SMS, shared_bytes_of_block};
    *value = values[attribute];
    return cudaSuccess;
}
/* Shared memory that a launch of a kernel may ask for: of all of a process, as on a device. */
static std::mutex limit_lock;
static std::map<const void *, size_t> limits;

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    std::lock_guard<std::mutex> guard(limit_lock);
    if (value > shared_bytes_of_block) return cudaErrorInvalidValue;
    limits[kernel] = (size_t)value;
    return cudaSuccess;
}
static bool within_limit(const void *kernel, size_t shared_bytes) {
    enum { UNASKED_BYTES = 48 << 10 };
    std::lock_guard<std::mutex> guard(limit_lock);
    return shared_bytes <= UNASKED_BYTES || shared_bytes <= limits[kernel];
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int, size_t) {
    *blocks = 1;
    return cudaSuccess;
}

/* Every rank a GPU of its own to NCCL's eyes, all in one process: their memory is simply there. */
cudaError_t cudaDeviceGetPCIBusId(char *id, int bytes, int) {
    static std::atomic<int> made;
    snprintf(id, (size_t)bytes, "0000:%02x:00.0", made++ & 255);
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
    *can = 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *) {
    memset(handle, 0, sizeof *handle);
    return cudaSuccess;
}
cudaError_t cudaIpcOpenMemHandle(void **, cudaIpcMemHandle_t, unsigned) {
    return cudaErrorInvalidValue;
}
cudaError_t cudaIpcCloseMemHandle(void *) { return cudaSuccess; }

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
    *pointer = malloc(bytes ? bytes : 1);
    if (*pointer) memset(*pointer, 0x5a, bytes);
    return *pointer ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaMallocHost(void **pointer, size_t bytes) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFree(void *pointer) {
    free(pointer);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *pointer) { return cudaFree(pointer); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind,
                            cudaStream_t stream) {
    return submit(stream, [=] { memmove(to, from, bytes); });
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, NULL);
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    return submit(stream, [=] { memset(to, value, bytes); });
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) {
    return cudaMemsetAsync(to, value, bytes, NULL);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = new emulated_stream();
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return is_captured(stream) ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = is_captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode) {
    stream->capture = std::make_shared<captured_work>();
    stream->capture->active = true;
    stream->origin = true;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (!stream->origin) return cudaErrorInvalidValue;
    stream->capture->active = false;
    *graph = new emulated_graph{stream->capture};
    stream->capture = NULL;
    stream->origin = false;
    return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    static thread_local enum cudaStreamCaptureMode present = cudaStreamCaptureModeGlobal;
    enum cudaStreamCaptureMode before = present;
    present = *mode;
    *mode = before;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new emulated_graph(*graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
    for (auto &work : exec->captured->work) work();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return cudaGraphDestroy(exec); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new emulated_event();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    event->capture = stream ? stream->capture : NULL;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (event->capture && stream) stream->capture = event->capture; /* it joins */
    return cudaSuccess;
}

static thread_local void (*running)(const lplb__cuda_step);
static void call(const void *arguments) { running(*(const lplb__cuda_step *)arguments); }

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel,
                                void **arguments) {
    lplb__cuda_step step;
    int blocks = (int)config->gridDim.x, threads = (int)config->blockDim.x;
    size_t shared_bytes = config->dynamicSmemBytes;
    memcpy(&step, arguments[0], sizeof step);
    if (!within_limit(kernel, shared_bytes)) return cudaErrorInvalidValue;
    return submit(config->stream, [=] {
        running = (void (*)(const lplb__cuda_step))kernel;
        emulated_launch(call, &step, blocks, threads, shared_bytes);
    });
}

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "an error of the emulator's user";
}
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
