/* asker DIR: asks about each read of a file that is opened below DIR, a mount point, and always says yes.
 *
 * What a listener costs that does nothing: the measure beside which Floe's own is put. It says "ready" once it listens.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/fanotify.h>
#include <unistd.h>

#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000 /* Linux 6.14 */
#endif

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    int group = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC, O_RDONLY | O_LARGEFILE);
    if (group < 0) { perror("fanotify_init"); return 1; }
    if (fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_PRE_ACCESS, AT_FDCWD, argv[1])) { perror("fanotify_mark"); return 1; }
    puts("ready");
    fflush(stdout);
    char events[1 << 16] __attribute__((aligned(8)));
    for (;;) {
        ssize_t left = read(group, events, sizeof events);
        if (left <= 0) { perror("reading the group"); return 1; }
        for (struct fanotify_event_metadata *event = (void *)events; FAN_EVENT_OK(event, left); event = FAN_EVENT_NEXT(event, left)) {
            struct fanotify_response answer = {.fd = event->fd, .response = FAN_ALLOW};
            if (write(group, &answer, sizeof answer) != sizeof answer) { perror("answering"); return 1; }
            close(event->fd);
        }
    }
}
