// What the kernel takes for a RUN step and nothing else: namespaces, an overlay mount, /proc,
// pivot_root, exec of `true`, wait. No builder gets below it.
//
// usage: floor LOWER SCRATCH COUNT    (LOWER absolute) prints milliseconds for COUNT steps, one after another
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void must(int result, const char *what) {
	if (result < 0) {
		fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
		_exit(1);
	}
}

static void step(const char *lower, const char *folder) {
	char options[PATH_MAX];
	int length = snprintf(options, sizeof options, "lowerdir=%s,upperdir=upper,workdir=work", lower);
	must(length < (int)sizeof options ? 0 : -1, "lower");
	must(chdir(folder), "chdir");
	must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private mounts");
	must(mount("overlay", "root", "overlay", 0, options), "overlay");
	must(chdir("root"), "chdir to root");
	must(mkdir("proc", 0555), "mkdir proc");
	must(mount("proc", "proc", "proc", 0, NULL), "proc");
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount");
	execl("/bin/true", "true", NULL);
	must(-1, "exec");
}

int main(int argc, char **argv) {
	if (argc != 4) {
		fprintf(stderr, "usage: floor LOWER SCRATCH COUNT\n");
		return 2;
	}
	must(chdir(argv[2]), argv[2]);
	struct timespec begin, end;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int n = 0; n < atoi(argv[3]); n++) {
		const char *names[] = {"", "/upper", "/work", "/root"};
		char folder[32], path[64];
		snprintf(folder, sizeof folder, "%d", n);
		for (int i = 0; i < 4; i++) {
			snprintf(path, sizeof path, "%s%s", folder, names[i]);
			must(mkdir(path, 0755), "mkdir");
		}
		int flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
		pid_t child = syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
		must(child, "clone");
		if (child == 0)
			step(argv[1], folder);
		int status;
		must(waitpid(child, &status, 0), "wait");
		if (status != 0)
			return 1;
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%.1f\n", (end.tv_sec - begin.tv_sec) * 1e3 + (end.tv_nsec - begin.tv_nsec) / 1e6);
	return 0;
}
