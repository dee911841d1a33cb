/* A team of threads that works through one call together.
 *
 * Within a call they meet at a spinning barrier: a decoded token has about two hundred meetings, and
 * waking a sleeping thread costs more than the work between two of them. Between calls they sleep.
 */
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace slip {

class Team {
  public:
    explicit Team(int size) : size(size) {
        for (int rank = 1; rank < size; rank++) members.emplace_back([this, rank] { serve(rank); });
    }

    ~Team() {
        {
            std::lock_guard<std::mutex> hold(lock);
            over = true;
            round++;
        }
        wake.notify_all();
        for (auto &member : members) member.join();
    }

    /* Run `work(rank)` on every member, the caller among them, until all are done. */
    void run(const std::function<void(int)> &work) {
        {
            std::lock_guard<std::mutex> hold(lock);
            task = &work;
            round++;
        }
        wake.notify_all();
        work(0);
        meet();
    }

    /* Wait until every member has come here. */
    void meet() {
        if (size == 1) return;
        int turn = turns.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            turns.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turns.load(std::memory_order_acquire) == turn; spins++) {
#if defined(__x86_64__)
            _mm_pause();
#endif
            if (spins > 2000) std::this_thread::yield(); /* somebody else needs the core */
        }
    }

    const int size;

  private:
    void serve(int rank) {
        for (long seen = 0;;) {
            const std::function<void(int)> *mine;
            {
                std::unique_lock<std::mutex> hold(lock);
                wake.wait(hold, [&] { return round != seen; });
                seen = round;
                if (over) return;
                mine = task;
            }
            (*mine)(rank);
            meet();
        }
    }

    std::vector<std::thread> members;
    std::mutex lock;
    std::condition_variable wake;
    const std::function<void(int)> *task = nullptr;
    long round = 0;
    bool over = false;
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> turns{0};
};

}  // namespace slip
