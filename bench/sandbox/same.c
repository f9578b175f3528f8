// What the kernel takes for a step's world and nothing else: the namespaces and mounts that
// rbuild's sandbox makes (solver/src/sandbox/namespaces/tree.rs), exec of a static `true`, wait.
// No filter, no capabilities, no pipes, no errors told.
//
// usage: same LAYER SCRATCH COUNT   LAYER (absolute) holds bin/true, SCRATCH is a folder on the
// same file system. Prints microseconds for a step: the least, and the median.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int must(int result, const char *what) {
	if (result < 0) {
		fprintf(stderr, "same: %s: %s\n", what, strerror(errno));
		_exit(1);
	}
	return result;
}

static int create(const char *kind, const char *const *options, int attributes) {
	int context = must(syscall(SYS_fsopen, kind, FSOPEN_CLOEXEC), kind);
	for (; options && *options; options += 2)
		must(syscall(SYS_fsconfig, context, options[1] ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG,
			     options[0], options[1], 0), options[0]);
	must(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0), kind);
	int mount = must(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes), kind);
	close(context);
	return mount;
}

static int again(int at, const char *path, int attributes) {
	int mount = must(syscall(SYS_open_tree, at, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH), path);
	struct mount_attr attr = {.attr_set = attributes};
	must(syscall(SYS_mount_setattr, mount, "", AT_EMPTY_PATH, &attr, sizeof attr), path);
	return mount;
}

static void attach(int mount, int at, const char *path) {
	must(syscall(SYS_move_mount, mount, "", at, path, MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH), path);
}

static void step(const char *layer, const char *stubs, const char *folder) {
	const int inert = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
	char upper[8192], work[8192];
	snprintf(upper, sizeof upper, "%s/upper", folder);
	snprintf(work, sizeof work, "%s/work", folder);
	int files = create("tmpfs", NULL, inert);
	attach(files, AT_FDCWD, "/");
	const char *names[] = {"hosts", "resolv.conf"};
	int file[2];
	for (int i = 0; i < 2; i++) {
		close(must(openat(files, names[i], O_CREAT | O_WRONLY, 0644), names[i]));
		file[i] = again(files, names[i], inert | MOUNT_ATTR_RDONLY);
	}
	int proc = create("proc", NULL, inert);
	int sys = create("sysfs", NULL, inert | MOUNT_ATTR_RDONLY);
	const char *overlay[] = {"lowerdir+", layer, "lowerdir+", stubs, "upperdir", upper, "workdir", work,
				 "redirect_dir", "off", "metacopy", "off", "index", "off", "volatile", NULL, NULL};
	int root = create("overlay", overlay, MOUNT_ATTR_NODEV);
	must(mkdirat(files, "root", 0755), "root");
	attach(root, files, "root");
	const char *folders[] = {"proc", "sys", "dev"};
	for (int i = 0; i < 3; i++)
		must(mkdirat(root, folders[i], 0755), folders[i]);
	attach(proc, root, "proc");
	attach(sys, root, "sys");
	const char *dev_options[] = {"mode", "755", "size", "65536k", NULL};
	int dev = create("tmpfs", dev_options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	attach(dev, root, "dev");
	const char *devices[] = {"null", "zero", "full", "random", "urandom", "tty"};
	int null = must(open("/dev/null", O_PATH | O_CLOEXEC), "/dev/null");
	for (int i = 0; i < 6; i++) {
		char path[32];
		snprintf(path, sizeof path, "/dev/%s", devices[i]);
		must(mknodat(dev, devices[i], S_IFREG | 0666, 0), path);
		attach(again(AT_FDCWD, path, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), dev, devices[i]);
	}
	const char *pts[] = {"newinstance", NULL, "ptmxmode", "0666", "mode", "0620", "gid", "5", NULL};
	const char *shm[] = {"mode", "1777", "size", "67108864", NULL};
	struct { const char *name, *kind; const char *const *options; int attributes; } more[] = {
		{"pts", "devpts", pts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC},
		{"shm", "tmpfs", shm, inert},
		{"mqueue", "mqueue", NULL, inert},
	};
	for (int i = 0; i < 3; i++) {
		must(mkdirat(dev, more[i].name, 0755), more[i].name);
		attach(create(more[i].kind, more[i].options, more[i].attributes), dev, more[i].name);
	}
	const char *links[] = {"core", "/proc/kcore", "fd", "/proc/self/fd", "ptmx", "pts/ptmx", "stderr",
			       "/proc/self/fd/2", "stdin", "/proc/self/fd/0", "stdout", "/proc/self/fd/1"};
	for (int i = 0; i < 12; i += 2)
		must(symlinkat(links[i + 1], dev, links[i]), links[i]);
	const char *masked[] = {"acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug",
				"scsi", "timer_list", "timer_stats"};
	struct stat status;
	for (int i = 0; i < 10; i++) {
		if (fstatat(proc, masked[i], &status, 0) < 0)
			continue;
		int mask = S_ISDIR(status.st_mode) ? create("tmpfs", NULL, inert | MOUNT_ATTR_RDONLY)
						   : again(null, "", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
		attach(mask, proc, masked[i]);
	}
	if (fstatat(sys, "firmware", &status, 0) == 0)
		attach(create("tmpfs", NULL, inert | MOUNT_ATTR_RDONLY), sys, "firmware");
	const char *protected[] = {"bus", "fs", "irq", "sys", "sysrq-trigger"};
	for (int i = 0; i < 5; i++)
		if (fstatat(proc, protected[i], &status, 0) == 0)
			attach(again(proc, protected[i], inert | MOUNT_ATTR_RDONLY), proc, protected[i]);
	attach(file[1], root, "etc/resolv.conf");
	attach(file[0], root, "etc/hosts");
	must(fchdir(root), "fchdir");
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount");
	must(umount2(".", MNT_DETACH), "umount");
	must(chdir("/"), "chdir");
	must(sethostname("buildkitsandbox", 15), "sethostname");
	execl("/bin/true", "true", NULL);
	must(-1, "exec");
}

static int compare(const void *one, const void *other) {
	double difference = *(const double *)one - *(const double *)other;
	return (difference > 0) - (difference < 0);
}

int main(int argc, char **argv) {
	if (argc != 4) {
		fprintf(stderr, "usage: same LAYER SCRATCH COUNT\n");
		return 2;
	}
	char stubs[4096], path[8192], folder[4096];
	snprintf(stubs, sizeof stubs, "%s/stubs", argv[2]);
	must(mkdir(stubs, 0755), stubs);
	snprintf(path, sizeof path, "%s/etc", stubs);
	must(mkdir(path, 0755), path);
	const char *names[] = {"hosts", "resolv.conf"};
	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof path, "%s/etc/%s", stubs, names[i]);
		close(must(open(path, O_CREAT | O_WRONLY, 0644), path));
	}
	must(unshare(CLONE_NEWNS), "unshare");
	must(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL), "slave mounts");
	int count = atoi(argv[3]);
	double *times = calloc(count, sizeof *times);
	for (int n = 0; n < count; n++) {
		const char *parts[] = {"", "/upper", "/work"};
		snprintf(folder, sizeof folder, "%s/%d", argv[2], n);
		for (int i = 0; i < 3; i++) {
			snprintf(path, sizeof path, "%s%s", folder, parts[i]);
			must(mkdir(path, 0755), path);
		}
		struct timespec begin, end;
		clock_gettime(CLOCK_MONOTONIC, &begin);
		int flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
		pid_t child = must(syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL), "clone");
		if (child == 0)
			step(argv[1], stubs, folder);
		int status;
		must(waitpid(child, &status, 0), "wait");
		if (status != 0)
			return 1;
		clock_gettime(CLOCK_MONOTONIC, &end);
		times[n] = (end.tv_sec - begin.tv_sec) * 1e6 + (end.tv_nsec - begin.tv_nsec) / 1e3;
	}
	qsort(times, count, sizeof *times, compare);
	printf("%.0f us a step at best, %.0f us in the middle\n", times[0], times[count / 2]);
	return 0;
}
