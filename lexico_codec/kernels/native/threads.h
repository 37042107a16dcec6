// Work spread over threads, and the arithmetic that they all have.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace lexico {

// Round to nearest and keep subnormals, whatever the caller's thread does (torch can flush them):
// bounds and bits depend on it.
struct PlainArithmetic {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    PlainArithmetic() { _mm_setcsr(0x1f80); }
    ~PlainArithmetic() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
    PlainArithmetic() { asm volatile("mrs %0, fpcr\n\tmsr fpcr, xzr" : "=r"(before) : : "memory"); }
    ~PlainArithmetic() { asm volatile("msr fpcr, %0" : : "r"(before) : "memory"); }
#endif
};

// How many threads the work keeps busy.
inline int64_t useful(int64_t threads, int64_t items, double work, double least) {
    const int64_t most = threads < items ? threads : items;
    return work < least * double(most) ? 1 + int64_t(work / least) : most;
}

// Where threads come in to work, until the caller closes it.
struct Door {
    std::mutex lock;
    std::condition_variable left;
    int inside = 0;
    bool closed = false;

    bool enter() {
        const std::lock_guard<std::mutex> hold(lock);
        if (closed) return false;
        return ++inside;
    }
    void leave() {
        const std::lock_guard<std::mutex> hold(lock);
        if (!--inside) left.notify_one();
    }
    void close() { // and waits for those inside
        std::unique_lock<std::mutex> hold(lock);
        closed = true;
        left.wait(hold, [this] { return !inside; });
    }
};

// Runs task() on `threads` threads, this one among them; where threads cannot be had, on fewer. All
// of them take items until none is left, so one that starts late, on a busy machine, is not waited
// for: it finds the door closed and touches nothing of the caller's.
template <typename Task>
void spread(int64_t threads, Task task) {
    const auto work = [&task] {
        const PlainArithmetic plain;
        task();
    };
    if (threads <= 1) return work();
    std::shared_ptr<Door> door;
    try {
        door = std::make_shared<Door>();
        for (int64_t i = 1; i < threads; ++i)
            std::thread([door, &work] {
                if (!door->enter()) return;
                work();
                door->leave();
            }).detach();
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
    work();
    if (door) door->close();
}

} // namespace lexico
