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
    unsigned long long id;
    bool active, invalid;
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

/* ---- what must not be done while something is captured ---- */

static std::mutex global_lock;
static std::vector<std::shared_ptr<captured_work>> global_captures; /* of mode global, all threads */
static thread_local enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

/* Allocating and waiting end the captures of mode global that go on, in whatever thread, unless the
 * caller's thread is relaxed. */
static cudaError_t unsafe_call() {
    std::lock_guard<std::mutex> guard(global_lock);
    if (thread_mode == cudaStreamCaptureModeRelaxed || global_captures.empty()) return cudaSuccess;
    for (auto &capture : global_captures) capture->invalid = true;
    return cudaErrorStreamCaptureUnsupported;
}

static cudaError_t submit(cudaStream_t stream, std::function<void()> work) {
    if (is_captured(stream) && stream->capture->invalid) return cudaErrorStreamCaptureInvalidated;
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
cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int) {
    const int values[] = {SMS, shared_bytes_of_block, 1};
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
    if (cudaError_t error = unsafe_call()) return error;
    *pointer = malloc(bytes ? bytes : 1);
    if (*pointer) memset(*pointer, 0x5a, bytes);
    return *pointer ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaMallocHost(void **pointer, size_t bytes) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFree(void *pointer) {
    if (cudaError_t error = unsafe_call()) return error;
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
    if (!is_captured(stream)) return unsafe_call();
    stream->capture->invalid = true;
    return cudaErrorStreamCaptureUnsupported;
}
cudaError_t cudaDeviceSynchronize(void) { return unsafe_call(); }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = !is_captured(stream)      ? cudaStreamCaptureStatusNone
              : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *,
                                     const cudaGraphNode_t **, const cudaGraphEdgeData **,
                                     size_t *) {
    cudaStreamIsCapturing(stream, status);
    if (*status == cudaStreamCaptureStatusActive) *id = stream->capture->id;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    static std::atomic<unsigned long long> last;
    stream->capture = std::make_shared<captured_work>();
    stream->capture->id = ++last;
    stream->capture->active = true;
    stream->origin = true;
    std::lock_guard<std::mutex> guard(global_lock);
    if (mode == cudaStreamCaptureModeGlobal) global_captures.push_back(stream->capture);
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (!stream->origin) return cudaErrorInvalidValue;
    std::shared_ptr<captured_work> capture = stream->capture;
    capture->active = false;
    stream->capture = NULL;
    stream->origin = false;
    *graph = NULL;
    std::lock_guard<std::mutex> guard(global_lock);
    for (size_t i = 0; i < global_captures.size(); i++)
        if (global_captures[i] == capture) global_captures.erase(global_captures.begin() + (long)i);
    if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
    *graph = new emulated_graph{capture};
    return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    enum cudaStreamCaptureMode before = thread_mode;
    thread_mode = *mode;
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
    event->capture = is_captured(stream) ? stream->capture : NULL;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return unsafe_call(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (event->capture && !event->capture->active) return cudaErrorCapturedEvent;
    if (is_captured(stream) && event->capture != stream->capture) {
        stream->capture->invalid = true; /* it would depend on what is none of its graph */
        if (event->capture) event->capture->invalid = true;
        return cudaErrorStreamCaptureIsolation;
    }
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
