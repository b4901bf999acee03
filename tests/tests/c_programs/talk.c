/* A C program as distributions build them (-O2 -D_FORTIFY_SOURCE=2): its calls with buffers of known
 * size reach __read_chk, __recv_chk, __recvfrom_chk, __poll_chk and __ppoll_chk only. It also leaves
 * blocking calls by siglongjmp and by pthread_cancel.
 *
 * Two processes, forked before any socket exists. The child serves: it echoes, drains or sits idle, as
 * it is told through a pair of Unix sockets. The parent plays the scene named by the argument and
 * prints what its calls returned.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

/* Sizes that the compiler cannot know. */
static volatile size_t eight = 8, twenty = 20, two = 2, five = 5;

static int sock, control;

static const char *result(ssize_t got)
{
	static char text[64];
	if (got < 0)
		snprintf(text, sizeof text, "%s", strerrorname_np(errno));
	else
		snprintf(text, sizeof text, "%zd", got);
	return text;
}

static void die(const char *what)
{
	printf("%s: %s\n", what, strerrorname_np(errno));
	exit(9);
}

/* The far end: 'e' echo, 'i' idle, 'd' drain and say so, 'q' leave. */
static void serve(void)
{
	static char data[100000];
	char mode = 'e';
	for (;;) {
		struct pollfd wait[2] = {{control, POLLIN, 0}, {mode == 'i' ? -1 : sock, POLLIN, 0}};
		int ready = poll(wait, 2, mode == 'd' ? 200 : -1);
		if (ready == 0) {
			mode = 'e';
			if (write(control, "k", 1) != 1)
				exit(1);
			continue;
		}
		if (wait[0].revents) {
			if (read(control, &mode, 1) != 1 || mode == 'q')
				exit(0);
			continue;
		}
		ssize_t got = recv(sock, data, sizeof data, 0);
		if (got <= 0)
			exit(got < 0);
		for (ssize_t done = 0; mode == 'e' && done < got;) {
			ssize_t sent = send(sock, data + done, got - done, MSG_NOSIGNAL);
			if (sent < 0)
				exit(2);
			done += sent;
		}
	}
}

static void tell(char mode)
{
	if (write(control, &mode, 1) != 1)
		die("tell");
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

/* Messages until the kernel's counters stand still, or a while. */
static void warm_up(void)
{
	for (int i = 0; i < 400; i++) {
		unsigned long before = kernel_bytes();
		exchange("warm up");
		exchange("warm up");
		if (kernel_bytes() == before && i > 20)
			return;
		usleep(1000);
	}
}

static void wait_for_bytes(int count)
{
	for (int i = 0; i < 5000; i++) {
		char all[64];
		if (recv(sock, all, sizeof all, MSG_PEEK | MSG_DONTWAIT) >= count)
			return;
		usleep(1000);
	}
}

static void checked_calls(void)
{
	char buf[10];
	struct sockaddr_in from;
	socklen_t len = sizeof from;
	struct timespec second = {1, 0};
	struct pollfd polled[2];

	memset(polled, 0, sizeof polled);
	polled[0].fd = sock;
	polled[0].events = POLLIN;
	polled[1].fd = -1;
	for (int round = 0; round < 3; round++) {
		if (send(sock, "checked", 8, 0) != 8)
			die("send");
		wait_for_bytes(8);
		printf("poll %s", result(poll(polled, two, 20000)));
		printf(" bits %x\n", polled[0].revents);
		printf("ppoll %s", result(ppoll(polled, two, &second, NULL)));
		printf(" bits %x\n", polled[0].revents);
		memset(buf, 0, sizeof buf);
		if (round == 0)
			printf("read %s", result(read(sock, buf, eight)));
		if (round == 1)
			printf("recv %s", result(recv(sock, buf, eight, 0)));
		if (round == 2) {
			printf("recvfrom %s", result(recvfrom(sock, buf, eight, 0, (struct sockaddr *)&from, &len)));
			printf(" address of %u", len);
		}
		printf(" %s\n", buf);
		printf("nothing %s\n", result(recv(sock, buf, eight, MSG_DONTWAIT)));
		printf("poll %s\n", result(poll(polled, two, 0)));
	}
}

static void overflow(const char *call)
{
	char buf[10];
	struct pollfd polled[2];

	if (send(sock, "01234567890123456789", 20, 0) != 20)
		die("send");
	wait_for_bytes(20);
	memset(polled, 0, sizeof polled);
	polled[0].fd = polled[1].fd = -1;
	fflush(stdout);
	if (!strcmp(call, "read"))
		printf("%zd\n", read(sock, buf, twenty));
	if (!strcmp(call, "recv"))
		printf("%zd\n", recv(sock, buf, twenty, 0));
	if (!strcmp(call, "recvfrom"))
		printf("%zd\n", recvfrom(sock, buf, twenty, 0, NULL, NULL));
	if (!strcmp(call, "poll"))
		printf("%d\n", poll(polled, five, 0));
	if (!strcmp(call, "ppoll"))
		printf("%d\n", ppoll(polled, five, NULL, NULL));
}

static sigjmp_buf out;

static void leap(int sig)
{
	(void)sig;
	siglongjmp(out, 1);
}

static void alarm_in(int ms)
{
	struct itimerval timer = {{0, 0}, {0, ms * 1000}};
	setitimer(ITIMER_REAL, &timer, NULL);
}

/* Leaves `call` by siglongjmp while it blocks. */
static void jump_out_of(const char *call)
{
	static char data[100000];
	volatile int leaps = 0;
	int set = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = {EPOLLIN, {0}};
	struct pollfd polled = {sock, POLLIN, 0};
	struct sigaction action;

	epoll_ctl(set, EPOLL_CTL_ADD, sock, &event);
	memset(&action, 0, sizeof action);
	action.sa_handler = leap;
	sigaction(SIGALRM, &action, NULL);
	if (!strcmp(call, "send"))
		tell('i');
	while (leaps < 12) {
		if (sigsetjmp(out, 1) == 0) {
			alarm_in(15);
			if (!strcmp(call, "recv"))
				recv(sock, data, sizeof data, 0);
			if (!strcmp(call, "poll"))
				poll(&polled, 1, -1);
			if (!strcmp(call, "epoll"))
				epoll_wait(set, &event, 1, -1);
			while (!strcmp(call, "send"))
				send(sock, data, sizeof data, 0);
			printf("%s came back\n", call);
			exit(3);
		}
		leaps++;
	}
	signal(SIGALRM, SIG_IGN);
	close(set);
	if (!strcmp(call, "send")) {
		char told;
		tell('d');
		if (read(control, &told, 1) != 1)
			die("drained");
	}
	printf("%s: %d leaps\n", call, leaps);
	exchange("after leaps");
}

static void *block(void *call)
{
	static char data[100000];
	struct pollfd polled = {sock, POLLIN, 0};
	if (!strcmp(call, "recv"))
		recv(sock, data, sizeof data, 0);
	if (!strcmp(call, "poll"))
		poll(&polled, 1, -1);
	while (!strcmp(call, "send"))
		send(sock, data, sizeof data, 0);
	return "came back";
}

/* Cancels a thread that blocks in `call`. */
static void cancel_in(char *call)
{
	int cancelled = 0;
	if (!strcmp(call, "send"))
		tell('i');
	for (int i = 0; i < 8; i++) {
		pthread_t thread;
		void *end = NULL;
		pthread_create(&thread, NULL, block, call);
		usleep(i == 0 ? 100000 : 15000);
		pthread_cancel(thread);
		pthread_join(thread, &end);
		cancelled += end == PTHREAD_CANCELED;
	}
	if (!strcmp(call, "send")) {
		char told;
		tell('d');
		if (read(control, &told, 1) != 1)
			die("drained");
	}
	printf("%s: %d cancelled\n", call, cancelled);
	exchange("after cancel");
}

int main(int argc, char **argv)
{
	int links[2], listener, status;
	struct sockaddr_in here;
	socklen_t len = sizeof here;
	in_port_t port;

	if (argc < 3)
		return 7;
	socketpair(AF_UNIX, SOCK_STREAM, 0, links);
	if (fork() == 0) {
		close(links[0]);
		control = links[1];
		if (read(control, &port, sizeof port) != sizeof port)
			exit(4);
		memset(&here, 0, sizeof here);
		here.sin_family = AF_INET;
		here.sin_port = port;
		here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		sock = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(sock, (struct sockaddr *)&here, sizeof here) < 0)
			exit(5);
		serve();
	}
	close(links[1]);
	control = links[0];
	memset(&here, 0, sizeof here);
	here.sin_family = AF_INET;
	here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&here, sizeof here) < 0 || listen(listener, 1) < 0 ||
	    getsockname(listener, (struct sockaddr *)&here, &len) < 0)
		die("listen");
	if (write(control, &here.sin_port, sizeof here.sin_port) != sizeof here.sin_port)
		die("port");
	sock = accept(listener, NULL, NULL);
	warm_up();
	if (!strcmp(argv[1], "calls"))
		checked_calls();
	if (!strcmp(argv[1], "overflow"))
		overflow(argv[2]);
	if (!strcmp(argv[1], "jump"))
		jump_out_of(argv[2]);
	if (!strcmp(argv[1], "cancel"))
		cancel_in(argv[2]);
	exchange("the end");
	tell('q');
	wait(&status);
	printf("far end: exit %d\n", WEXITSTATUS(status));
	return 0;
}
