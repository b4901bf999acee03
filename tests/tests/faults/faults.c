/* A program that handles SIGSEGV and SIGBUS itself, or does not, and passes bad pointers to its socket
 * calls. Its handlers must be called as the kernel would call them, for its own faults and for no
 * others, and what it reads back of its actions must be what it set.
 *
 * Two processes, forked before any socket exists: the child echoes, the parent plays the scene named by
 * the argument and prints what happened.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int sock;
static char *nothing, *only_read;

static const char *result(ssize_t got)
{
	static char text[4][64];
	static int turn;
	char *out = text[turn++ % 4];
	if (got < 0)
		snprintf(out, sizeof text[0], "%s", strerrorname_np(errno));
	else
		snprintf(out, sizeof text[0], "%zd", got);
	return out;
}

static void die(const char *what)
{
	printf("%s: %s\n", what, strerrorname_np(errno));
	exit(9);
}

static void echo(int listener)
{
	static char data[4096];
	int fd = accept(listener, NULL, NULL);
	for (;;) {
		ssize_t got = recv(fd, data, sizeof data, 0);
		if (got <= 0)
			_exit(0);
		for (ssize_t done = 0; done < got;) {
			ssize_t sent = send(fd, data + done, got - done, MSG_NOSIGNAL);
			if (sent < 0)
				_exit(0);
			done += sent;
		}
	}
}

static unsigned long kernel_bytes(void)
{
	unsigned long info[32] = {0};
	socklen_t len = sizeof info;
	getsockopt(sock, IPPROTO_TCP, TCP_INFO, info, &len);
	return info[25];
}

static void exchange(const char *text)
{
	char buf[16];
	size_t len = strlen(text), done = 0;
	if (write(sock, text, len) != (ssize_t)len)
		die("write");
	while (done < len) {
		ssize_t got = recv(sock, buf + done, sizeof buf - done, 0);
		if (got <= 0)
			die("recv");
		done += got;
	}
	if (memcmp(buf, text, len))
		die("compare");
}

/* Connects, and exchanges messages until the kernel's counters stand still, or a while. */
static void connect_and_warm_up(void)
{
	struct sockaddr_in here;
	socklen_t len = sizeof here;
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	memset(&here, 0, sizeof here);
	here.sin_family = AF_INET;
	here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (struct sockaddr *)&here, sizeof here) < 0 || listen(listener, 1) < 0 ||
	    getsockname(listener, (struct sockaddr *)&here, &len) < 0)
		die("listen");
	if (fork() == 0) {
		signal(SIGSEGV, SIG_DFL);
		signal(SIGBUS, SIG_DFL);
		echo(listener);
	}
	close(listener);
	sock = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(sock, (struct sockaddr *)&here, sizeof here) < 0)
		die("connect");
	for (int i = 0; i < 400; i++) {
		unsigned long before = kernel_bytes();
		exchange("warm up");
		exchange("warm up");
		if (kernel_bytes() == before && i > 20)
			return;
		usleep(1000);
	}
}

/* Bad pointers are EFAULT, and move no byte. */
static void bad_pointers(const char *when)
{
	char buf[8] = "";
	printf("%s: send %s", when, result(send(sock, nothing, 5, 0)));
	if (send(sock, "abc", 3, 0) != 3)
		die("send");
	printf(" recv %s", result(recv(sock, nothing, 5, 0)));
	printf(" %s", result(recv(sock, only_read, 5, 0)));
	size_t done = 0;
	while (done < 3) {
		ssize_t got = recv(sock, buf + done, sizeof buf - done, 0);
		if (got <= 0)
			die("recv");
		done += got;
	}
	printf(" then %s\n", buf);
}

static sigjmp_buf back;
static volatile sig_atomic_t caught;

static void leap(int sig)
{
	(void)sig;
	caught++;
	siglongjmp(back, 1);
}

static void fault(char *at)
{
	if (sigsetjmp(back, 1) == 0) {
		*(volatile char *)at = 1;
		printf("no fault\n");
	}
}

static void *map(size_t len, int prot, int file)
{
	int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	void *at = mmap(NULL, len, prot, flags, file, 0);
	if (at == MAP_FAILED)
		die("mmap");
	return at;
}

static char *beyond_the_file(void)
{
	return map(4096, PROT_READ | PROT_WRITE, memfd_create("short", 0));
}

/* A handler of one argument, installed before or after the first connection. */
static void jump(int before)
{
	if (before) {
		signal(SIGSEGV, leap);
		signal(SIGBUS, leap);
	}
	connect_and_warm_up();
	if (!before) {
		signal(SIGSEGV, leap);
		signal(SIGBUS, leap);
	}
	for (int round = 0; round < 3; round++) {
		bad_pointers("jump");
		fault(NULL);
		fault(nothing);
		fault(only_read);
		fault((char *)0x1234567812345678);
		fault(beyond_the_file());
		printf("caught %d\n", (int)caught);
	}
	printf("was ours: %d %d\n", signal(SIGSEGV, SIG_DFL) == leap, signal(SIGBUS, SIG_IGN) == leap);
	printf("was default: %d ignored: %d\n", signal(SIGSEGV, SIG_DFL) == SIG_DFL,
	       signal(SIGBUS, SIG_DFL) == SIG_IGN);
	bad_pointers("at the end");
}

static char *stack;
static size_t stack_len = 1 << 16;

/* What the handler sees of itself. */
static void inspect(int sig, siginfo_t *info, void *context)
{
	char here;
	sigset_t mask;
	(void)context;
	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	printf("%s code %d at %s, %s stack, blocked: SEGV %d USR1 %d USR2 %d\n",
	       sig == SIGSEGV ? "SEGV" : "BUS", info->si_code,
	       info->si_addr == (void *)nothing ? "nothing"
	       : info->si_addr == NULL          ? "null"
	                                        : "elsewhere",
	       &here > stack && &here < stack + stack_len ? "other" : "own",
	       sigismember(&mask, SIGSEGV), sigismember(&mask, SIGUSR1), sigismember(&mask, SIGUSR2));
	siglongjmp(back, 1);
}

static void install(void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action, told;
	memset(&action, 0, sizeof action);
	action.sa_sigaction = handler;
	action.sa_flags = flags;
	sigaddset(&action.sa_mask, SIGUSR1);
	for (int i = 0; i < 2; i++) {
		int sig = i ? SIGBUS : SIGSEGV;
		if (sigaction(sig, &action, NULL) < 0 || sigaction(sig, NULL, &told) < 0)
			die("sigaction");
		/* SA_RESTORER is libc's own. */
		if (told.sa_sigaction != handler || (told.sa_flags & ~0x04000000) != flags ||
		    !sigismember(&told.sa_mask, SIGUSR1) || sigismember(&told.sa_mask, SIGUSR2))
			printf("told something else: flags %x for %x\n", told.sa_flags, flags);
	}
}

static volatile int deep = 1 << 30;

__attribute__((noinline)) static int overflow(int depth)
{
	volatile char room[4096];
	room[0] = depth;
	return depth < deep ? overflow(depth + 1) + room[1] : room[0];
}

/* Handlers of three arguments, in all conditions that a program can ask for. */
static void info(int before)
{
	stack_t other = {.ss_sp = stack = map(stack_len, PROT_READ | PROT_WRITE, -1), .ss_size = stack_len};
	static const int flags[] = {
	    SA_SIGINFO | SA_ONSTACK, SA_SIGINFO, SA_SIGINFO | SA_ONSTACK | SA_RESTART,
	    SA_SIGINFO | SA_ONSTACK | SA_NODEFER,
	};
	sigaltstack(&other, NULL);
	if (before)
		install(inspect, flags[0]);
	connect_and_warm_up();
	for (int i = 0; i < 4; i++) {
		if (!before || i > 0)
			install(inspect, flags[i]);
		bad_pointers("info");
		fault(NULL);
		fault(nothing);
		fault(only_read);
		fault(beyond_the_file());
		if (sigsetjmp(back, 1) == 0)
			raise(SIGSEGV);
	}
	install(inspect, flags[0]);
	if (sigsetjmp(back, 1) == 0)
		printf("%d\n", overflow(0));
	bad_pointers("at the end");
}

static void once(int sig, siginfo_t *info, void *context)
{
	(void)context;
	printf("once: %d %d\n", sig == SIGSEGV, info->si_addr == (void *)nothing);
	fflush(stdout);
}

/* How a program ends that does not handle its fault. */
static void end(const char *how)
{
	connect_and_warm_up();
	bad_pointers("end");
	fflush(stdout);
	if (!strcmp(how, "fault"))
		*(volatile char *)nothing = 1;
	if (!strcmp(how, "raise"))
		raise(SIGSEGV);
	if (!strcmp(how, "kill"))
		kill(getpid(), SIGSEGV);
	if (!strcmp(how, "bus"))
		*(volatile char *)beyond_the_file() = 1;
	if (!strcmp(how, "one-shot")) {
		install(once, SA_SIGINFO | SA_RESETHAND);
		*(volatile char *)nothing = 1;
	}
	if (!strcmp(how, "reset")) {
		signal(SIGSEGV, leap);
		signal(SIGSEGV, SIG_DFL);
		*(volatile char *)nothing = 1;
	}
	if (!strcmp(how, "ignored")) {
		signal(SIGSEGV, SIG_IGN);
		raise(SIGSEGV);
		printf("ignored\n");
		fflush(stdout);
		*(volatile char *)nothing = 1;
	}
	if (!strcmp(how, "thread")) {
		pthread_t thread;
		pthread_create(&thread, NULL, (void *(*)(void *))(void *)raise, (void *)(long)SIGSEGV);
		pthread_join(thread, NULL);
	}
	printf("still there\n");
}

static void *fault_often(void *name)
{
	for (int i = 0; i < 2000; i++)
		if (send(sock, nothing, 5, 0) != -1 || errno != EFAULT)
			return "sent";
	return name;
}

/* Several threads at a time, and a handler that may not be called. */
static void threads(void)
{
	pthread_t all[4];
	signal(SIGSEGV, leap);
	connect_and_warm_up();
	for (int i = 0; i < 4; i++)
		pthread_create(&all[i], NULL, fault_often, "fine");
	for (int i = 0; i < 4; i++) {
		void *said;
		pthread_join(all[i], &said);
		printf("thread: %s\n", (char *)said);
	}
	printf("caught %d\n", (int)caught);
	bad_pointers("at the end");
}

static void wait_for(pid_t child)
{
	int status;
	if (waitpid(child, &status, 0) < 0)
		die("waitpid");
	if (WIFSIGNALED(status))
		printf("child: signal %d\n", WTERMSIG(status));
	else
		printf("child: exit %d\n", WEXITSTATUS(status));
}

/* Children: forked ones go on as their parent, and what a vfork child sets is its own affair. */
static void children(void)
{
	pid_t child;
	signal(SIGSEGV, leap);
	connect_and_warm_up();
	fflush(stdout);
	if ((child = fork()) == 0) {
		bad_pointers("in the child");
		fault(nothing);
		printf("caught %d\n", (int)caught);
		fflush(stdout);
		signal(SIGSEGV, SIG_DFL);
		*(volatile char *)nothing = 1;
		_exit(3);
	}
	wait_for(child);
	if ((child = vfork()) == 0) {
		signal(SIGSEGV, SIG_DFL);
		_exit(signal(SIGSEGV, SIG_DFL) != SIG_DFL);
	}
	wait_for(child);
	fault(nothing);
	printf("caught %d\n", (int)caught);
	bad_pointers("at the end");
}

/* What another program inherits. */
static void other_program(void)
{
	connect_and_warm_up();
	signal(SIGSEGV, SIG_IGN);
	signal(SIGBUS, leap);
	fflush(stdout);
	fcntl(sock, F_SETFD, FD_CLOEXEC);
	execlp("sed", "sed", "-n", "/SigIgn/p", "/proc/self/status", NULL);
	die("exec");
}

int main(int argc, char **argv)
{
	struct rlimit no_core = {0, 0};
	const char *scene = argc > 1 ? argv[1] : "", *how = argc > 2 ? argv[2] : "";

	setrlimit(RLIMIT_CORE, &no_core);
	nothing = map(4096, PROT_NONE, -1);
	only_read = map(4096, PROT_READ, -1);
	if (!strcmp(scene, "jump"))
		jump(!strcmp(how, "before"));
	else if (!strcmp(scene, "info"))
		info(!strcmp(how, "before"));
	else if (!strcmp(scene, "end"))
		end(how);
	else if (!strcmp(scene, "threads"))
		threads();
	else if (!strcmp(scene, "children"))
		children();
	else if (!strcmp(scene, "exec"))
		other_program();
	else
		return 7;
	exchange("the end");
	return 0;
}
