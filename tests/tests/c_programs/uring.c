/* A C program that reads and writes a socket by libc's calls, then by requests through liburing or libaio, and by
 * libc's calls again.
 *
 * Two processes, forked before any socket exists. The child echoes what it gets. The parent plays the
 * scene named by the argument and prints what its calls returned.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <libaio.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 40
#define MANY 100000

static int sock;
static char out[MANY], in[MANY];

static void die(const char *what)
{
	printf("%s: %s\n", what, strerrorname_np(errno));
	exit(9);
}

static void echo(int fd)
{
	static char data[MANY];
	ssize_t got, sent;
	while ((got = read(fd, data, sizeof data)) > 0)
		for (ssize_t done = 0; done < got; done += sent)
			if ((sent = write(fd, data + done, got - done)) < 0)
				exit(2);
	exit(got < 0);
}

static void connect_both(void)
{
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof at;
	if (bind(listener, (void *)&at, len) || listen(listener, 1) || getsockname(listener, (void *)&at, &len))
		die("listen");
	if (fork() == 0) {
		close(listener);
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		if (connect(fd, (void *)&at, sizeof at))
			die("connect");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		echo(fd);
	}
	sock = accept(listener, NULL, NULL);
	if (sock < 0)
		die("accept");
	close(listener);
	setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* Reads all of it by libc, and says whether it is what was sent. */
static void get(const char *what, size_t bytes)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t got = recv(sock, in + done, bytes - done, 0);
		if (got <= 0)
			die(what);
		done += got;
	}
	printf("%s: %s\n", what, memcmp(in, out, bytes) ? "differs" : "same");
}

static void put(size_t bytes)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t sent = send(sock, out + done, bytes - done, MSG_NOSIGNAL);
		if (sent < 0)
			die("send");
		done += sent;
	}
}

/* Long enough to be on rings. */
static void by_libc(const char *what)
{
	for (int round = 0; round < ROUNDS; round++) {
		out[0] = round;
		put(64);
		for (size_t done = 0; done < 64;) {
			ssize_t got = recv(sock, in + done, 64 - done, 0);
			if (got <= 0)
				die(what);
			done += got;
		}
		if (memcmp(in, out, 64))
			printf("%s: differs in round %d\n", what, round);
		usleep(1000);
	}
	printf("%s: done\n", what);
}

static void await_bytes(void)
{
	struct pollfd wait = {sock, POLLIN, 0};
	poll(&wait, 1, -1);
}

static struct io_uring ring;

/* Submits one request and returns its result. */
static int result(int timed)
{
	struct io_uring_cqe *cqe;
	struct __kernel_timespec limit = {20, 0};
	int error = timed ? io_uring_submit_and_wait_timeout(&ring, &cqe, 1, &limit, NULL)
			  : io_uring_submit_and_wait(&ring, 1);
	if (error < 0)
		return error;
	if ((error = io_uring_wait_cqe_timeout(&ring, &cqe, &limit)) < 0)
		return error;
	int answer = cqe->res;
	io_uring_cqe_seen(&ring, cqe);
	return answer;
}

/* Gets all of it by requests, of a descriptor or of the first registered file. */
static void get_by_ring(const char *what, size_t bytes, int fixed)
{
	for (size_t done = 0; done < bytes;) {
		struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
		io_uring_prep_recv(sqe, fixed ? 0 : sock, in + done, bytes - done, 0);
		if (fixed)
			sqe->flags |= IOSQE_FIXED_FILE;
		int got = result(done % 2);
		if (got <= 0) {
			errno = -got;
			die(what);
		}
		done += got;
	}
	printf("%s: %s\n", what, memcmp(in, out, bytes) ? "differs" : "same");
}

static void put_by_ring(size_t bytes)
{
	for (size_t done = 0; done < bytes;) {
		io_uring_prep_send(io_uring_get_sqe(&ring), sock, out + done, bytes - done, MSG_NOSIGNAL);
		int sent = result(0);
		if (sent < 0) {
			errno = -sent;
			die("send by ring");
		}
		done += sent;
	}
}

static void poll_by_ring(const char *what, int fd)
{
	io_uring_prep_poll_add(io_uring_get_sqe(&ring), fd, POLLIN);
	printf("%s: %d\n", what, result(0));
}

static void aio(void)
{
	io_context_t context = 0;
	struct iocb request, *list[1] = {&request};
	struct io_event event;
	if (io_setup(4, &context) < 0) {
		printf("no aio\n");
		return;
	}
	by_libc("set up");
	io_prep_pwrite(&request, sock, out, 1000, 0);
	printf("submitted: %d\n", io_submit(context, 1, list));
	printf("events: %d\n", io_getevents(context, 1, 1, &event, NULL));
	printf("written: %ld\n", (long)event.res);
	size_t done = 0;
	while (done < 1000) {
		io_prep_pread(&request, sock, in + done, 1000 - done, 0);
		if (io_submit(context, 1, list) != 1 || io_getevents(context, 1, 1, &event, NULL) != 1 || (long)event.res <= 0)
			die("read by aio");
		done += event.res;
	}
	printf("read: %s\n", memcmp(in, out, 1000) ? "differs" : "same");
}

int main(int argc, char **argv)
{
	const char *scene = argc > 1 ? argv[1] : "";
	alarm(60);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t at = 0; at < MANY; at++)
		out[at] = at * 31 + at / 251;
	connect_both();
	by_libc("first");
	int error = strcmp(scene, "aio") ? io_uring_queue_init(8, &ring, 0) : 0;
	if (error) {
		printf("no io_uring: %s\n", strerrorname_np(-error));
	} else if (!strcmp(scene, "streams")) {
		for (int round = 0; round < 20; round++) {
			put_by_ring(5000);
			get_by_ring("stream", 5000, 0);
		}
	} else if (!strcmp(scene, "late")) {
		/* Bytes wait where libc's calls would find them. */
		put(MANY);
		usleep(200000);
		get_by_ring("late", MANY, 0);
	} else if (!strcmp(scene, "half")) {
		put(MANY);
		await_bytes();
		recv(sock, in, 10, MSG_WAITALL);
		memmove(out, out + 10, MANY - 10);
		get_by_ring("half", MANY - 10, 0);
	} else if (!strcmp(scene, "poll")) {
		put(1000);
		poll_by_ring("ready", sock);
		get("polled", 1000);
	} else if (!strcmp(scene, "epoll")) {
		struct epoll_event event = {.events = EPOLLIN};
		int set = epoll_create1(0);
		if (epoll_ctl(set, EPOLL_CTL_ADD, sock, &event))
			die("epoll_ctl");
		put(10);
		printf("waited: %d\n", epoll_wait(set, &event, 1, -1));
		get("seen", 10);
		for (int round = 0; round < 5; round++) {
			put(1000);
			poll_by_ring("set", set);
			printf("waited: %d\n", epoll_wait(set, &event, 1, 0));
			get("of the set", 1000);
		}
	} else if (!strcmp(scene, "files")) {
		if ((error = io_uring_register_files(&ring, &sock, 1)) < 0)
			printf("register: %s\n", strerrorname_np(-error));
		put(2000);
		get_by_ring("file", 2000, 1);
	} else if (!strcmp(scene, "update")) {
		int none = -1;
		if ((error = io_uring_register_files(&ring, &none, 1)) < 0)
			printf("register: %s\n", strerrorname_np(-error));
		printf("update: %d\n", io_uring_register_files_update(&ring, 0, &sock, 1));
		put(2000);
		get_by_ring("file", 2000, 1);
	} else if (!strcmp(scene, "splice")) {
		int ends[2];
		if (pipe(ends))
			die("pipe");
		put(1000);
		size_t done = 0;
		while (done < 1000) {
			io_uring_prep_splice(io_uring_get_sqe(&ring), sock, -1, ends[1], -1, 1000 - done, 0);
			int got = result(0);
			if (got <= 0 || read(ends[0], in + done, got) != got)
				die("splice");
			done += got;
		}
		printf("spliced: %s\n", memcmp(in, out, 1000) ? "differs" : "same");
	} else if (!strcmp(scene, "aio")) {
		aio();
	} else if (!strcmp(scene, "beside")) {
		/* io_uring for something else: the connection stays where it is. */
		io_uring_prep_nop(io_uring_get_sqe(&ring));
		printf("nothing: %d\n", result(0));
	}
	by_libc("again");
	shutdown(sock, SHUT_WR);
	printf("end: %zd\n", recv(sock, in, 1, 0));
	int status;
	wait(&status);
	printf("far end: %d\n", WEXITSTATUS(status));
	return 0;
}
