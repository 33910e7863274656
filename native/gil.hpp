// Giving the interpreter's lock away during native work, and taking it back: which is not possible once the
// interpreter is finalised. A thread that tried would be ended inside native code, and that ends the process with an
// abort (Python 3.13 and before). Such a thread sleeps instead until the process ends.
#pragma once

#include <Python.h>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include <chrono>
#include <mutex>
#include <new>
#include <thread>

namespace treadle {

class GilGate {
  public:
    // Called with the lock held, at the interpreter's exit: from now on only this thread gets the lock back.
    void close() {
        {
            const std::lock_guard lock(mutex_);
            closed_ = true;
            closer_ = std::this_thread::get_id();
        }
        for (;;) {  // those already on their way back come through first
            {
                const std::lock_guard lock(mutex_);
                if (returning_ == 0) return;
            }
            PyThreadState* state = PyEval_SaveThread();
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            PyEval_RestoreThread(state);
        }
    }

    void take_back(PyThreadState* state) {
        if (!enter()) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
        PyEval_RestoreThread(state);
        const std::lock_guard lock(mutex_);
        --returning_;
    }

  private:
    bool enter() {
        const std::lock_guard lock(mutex_);
        if (closed_ && closer_ != std::this_thread::get_id()) return false;
        ++returning_;
        return true;
    }

    std::mutex mutex_;
    bool closed_ = false;
    std::thread::id closer_;
    int returning_ = 0;
};

inline GilGate& gil_gate() {
    alignas(GilGate) static unsigned char place[sizeof(GilGate)];
    static const bool made = [] {
        const auto make = [] { new (place) GilGate; };  // never destroyed: threads may still come
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork(nullptr, nullptr,
                       make);  // the threads that the parent's gate counts are not in the child
#endif
        make();
        return true;
    }();
    static_cast<void>(made);
    return *std::launder(reinterpret_cast<GilGate*>(place));
}

// The lock is given away for the life of this object.
class GilRelease {
  public:
    GilRelease() : state_(PyEval_SaveThread()) {}
    ~GilRelease() { gil_gate().take_back(state_); }
    GilRelease(const GilRelease&) = delete;
    GilRelease& operator=(const GilRelease&) = delete;

  private:
    PyThreadState* state_;
};

}  // namespace treadle
