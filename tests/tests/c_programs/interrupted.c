// A signal handler that ends the connection whose bytes its thread is just copying, or that leaves the copy by siglongjmp.
//
// interrupted ACTION CALL: the action is what the handler does, close, shutdown, both (shutdown and close), dup2 or jump; the call
// that it interrupts is send or recv. "interrupted probe -" says by its status whether this can be done here (77: no).
//
// A page of the buffer is missing until the handler has run: userfaultfd(2), of faults in the kernel too.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LENGTH = 65536, PAGE = 4096, ROUNDS = 60 };

static int sock, faults, report;
static char *buffer;
static const char *action;
static volatile int done;
static sigjmp_buf before;
static pthread_t caller;

static void pause_ms(int ms) {
    struct timespec left = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&left, &left) < 0 && errno == EINTR) {
    }
}

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static const char *name(long result) {
    return result < 0 ? strerrorname_np(errno) : "good";
}

static void handler(int signal) {
    (void)signal;
    int saved = errno;
    done = 1;
    if (!strcmp(action, "jump"))
        siglongjmp(before, 1);
    if (!strcmp(action, "shutdown") || !strcmp(action, "both"))
        done += shutdown(sock, SHUT_WR) == 0;
    if (!strcmp(action, "close") || !strcmp(action, "both"))
        done += close(sock) == 0;
    if (!strcmp(action, "dup2"))
        done += dup2(open("/dev/null", O_RDWR), sock) == sock;
    errno = saved;
}

// Sends the signal when the missing page is touched, and gives it out only when the handler has had time to run.
static void *resolve(void *unused) {
    (void)unused;
    for (;;) {
        struct uffd_msg fault;
        struct pollfd ready = {faults, POLLIN, 0};
        syscall(SYS_poll, &ready, 1, -1);
        if (syscall(SYS_read, faults, &fault, sizeof fault) != sizeof fault)
            continue;
        pthread_kill(caller, SIGUSR1);
        pause_ms(60);
        static char page[PAGE];
        struct uffdio_copy copy = {.dst = fault.arg.pagefault.address & ~(PAGE - 1UL), .src = (unsigned long)page, .len = PAGE};
        ioctl(faults, UFFDIO_COPY, &copy);
    }
    return 0;
}

static int make_buffer(void) {
    buffer = mmap(0, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(buffer != MAP_FAILED, "mmap");
    memset(buffer, 'a', 2 * PAGE);
    memset(buffer + 3 * PAGE, 'a', LENGTH - 3 * PAGE);
    faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register missing = {.range = {(unsigned long)buffer + 2 * PAGE, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    return faults >= 0 && ioctl(faults, UFFDIO_API, &api) == 0 && ioctl(faults, UFFDIO_REGISTER, &missing) == 0;
}

static void warm(int first) {
    char word[4] = "ping";
    for (int round = 0; round < ROUNDS; round++) {
        if (first)
            check(send(sock, word, 4, 0) == 4, "warm send");
        check(recv(sock, word, 4, MSG_WAITALL) == 4, "warm recv");
        pause_ms(1);
        if (!first)
            check(send(sock, word, 4, 0) == 4, "warm send");
    }
}

static long until_end(char *into, long length) {
    long sum = 0, got;
    while ((got = recv(sock, into, length, 0)) > 0)
        sum += got;
    dprintf(report, "far end: %ld bytes, then %s\n", sum, name(got));
    return sum;
}

static void far_end(int sends) {
    static char bytes[LENGTH];
    warm(0);
    if (sends) {
        memset(bytes, 'z', LENGTH);
        check(send(sock, bytes, LENGTH, 0) == LENGTH, "far send");
    }
    if (sends && !strcmp(action, "jump")) {
        // More, behind what the call that was left had begun to read.
        recv(sock, bytes, 1, 0);
        send(sock, "more", 4, 0);
    }
    until_end(bytes, LENGTH);
    exit(0);
}

static void *look(void *result) {
    char bytes[3];
    *(long *)result = recv(sock, bytes, 3, MSG_DONTWAIT);
    return 0;
}

// The connection is as usable as before.
static void after_jump(int sends) {
    char bytes[64];
    long sum = 0, got, other = -1;
    printf("send afterwards: %ld\n", (long)send(sock, "x", 1, 0));
    pause_ms(100);
    if (!sends) {
        pthread_t thread;
        pthread_create(&thread, 0, look, &other);
        pthread_join(thread, 0);
        printf("another thread receives: %ld\n", other);
        struct pollfd ready = {sock, POLLIN, 0};
        while (poll(&ready, 1, 300) == 1 && (got = recv(sock, bytes, sizeof bytes, MSG_DONTWAIT)) > 0)
            sum += got;
        printf("some more came: %d\n", sum > 0);
    }
    close(sock);
}

static void near_end(int sends) {
    struct sigaction how = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &how, 0);
    signal(SIGPIPE, SIG_IGN);
    check(make_buffer(), "userfaultfd");
    caller = pthread_self();
    pthread_t thread;
    pthread_create(&thread, 0, resolve, 0);
    warm(1);
    pause_ms(100);
    if (sigsetjmp(before, 1)) {
        after_jump(sends);
        return;
    }
    long moved = sends ? send(sock, buffer, LENGTH, 0) : recv(sock, buffer, LENGTH, 0);
    printf("call: %ld, handler: %d\n", moved, done);
    long next = send(sock, "q", 1, 0);
    printf("send afterwards: %ld %s\n", next, name(next));
    close(sock);
}

int main(int count, char **words) {
    check(count == 3, "two words");
    action = words[1];
    if (!strcmp(action, "probe"))
        return make_buffer() ? 0 : 77;
    int sends = !strcmp(words[2], "send");
    int listener = socket(AF_INET, SOCK_STREAM, 0), said[2];
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    check(bind(listener, (void *)&at, sizeof at) == 0 && listen(listener, 1) == 0, "listen");
    getsockname(listener, (void *)&at, &length);
    check(pipe(said) == 0, "pipe");
    fflush(stdout);
    pid_t far = fork();
    if (far == 0) {
        report = said[1];
        sock = accept(listener, 0, 0);
        far_end(!sends);
    }
    close(said[1]);
    sock = socket(AF_INET, SOCK_STREAM, 0);
    check(connect(sock, (void *)&at, sizeof at) == 0, "connect");
    close(listener);
    near_end(sends);
    waitpid(far, 0, 0);
    char text[256];
    long got = read(said[0], text, sizeof text);
    printf("%.*s", (int)(got > 0 ? got : 0), text);
    return 0;
}
