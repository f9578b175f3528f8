/* Answers questions on port 8000 with what it needs of the system: TLS, character sets, locales,
 * time zones, names of users and of hosts. */
#include <arpa/inet.h>
#include <iconv.h>
#include <locale.h>
#include <netdb.h>
#include <openssl/provider.h>
#include <openssl/ssl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void answer(const char *path, char *body, size_t size) {
    if (!strcmp(path, "/health")) {
        snprintf(body, size, "ok\n");
    } else if (!strcmp(path, "/tls")) {
        SSL_CTX *context = SSL_CTX_new(TLS_client_method());
        int paths = SSL_CTX_set_default_verify_paths(context);
        X509_STORE *store = SSL_CTX_get_cert_store(context);
        int loaded = X509_STORE_load_file(store, "/etc/ssl/certs/ca-certificates.crt");
        OSSL_PROVIDER *legacy = OSSL_PROVIDER_load(NULL, "legacy");
        snprintf(body, size, "paths %d authorities %d legacy %d\n", paths, loaded, legacy != NULL);
        SSL_CTX_free(context);
    } else if (!strcmp(path, "/charset")) {
        iconv_t latin = iconv_open("ISO-8859-15", "UTF-8");
        snprintf(body, size, "charset %d\n", latin != (iconv_t)-1);
        if (latin != (iconv_t)-1) iconv_close(latin);
    } else if (!strcmp(path, "/locale")) {
        const char *name = setlocale(LC_ALL, "");
        snprintf(body, size, "locale %s\n", name ? name : "none");
    } else if (!strcmp(path, "/zone")) {
        time_t zero = 0;
        setenv("TZ", "Europe/Berlin", 1);
        tzset();
        strftime(body, size, "%H:%M %Z\n", localtime(&zero));
    } else if (!strcmp(path, "/names")) {
        struct passwd *user = getpwuid(0);
        struct addrinfo *found = NULL;
        int host = getaddrinfo("localhost", "http", NULL, &found);
        snprintf(body, size, "user %s host %d\n", user ? user->pw_name : "none", host);
        if (found) freeaddrinfo(found);
    } else {
        snprintf(body, size, "?\n");
    }
}

int main(void) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(8000)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 16)) {
        perror("listen");
        return 1;
    }
    for (;;) {
        char request[4096], path[256] = "", body[512];
        int client = accept(listener, NULL, NULL);
        ssize_t length = read(client, request, sizeof request - 1);
        request[length > 0 ? length : 0] = 0;
        sscanf(request, "%*s %255s", path);
        answer(path, body, sizeof body);
        dprintf(client, "HTTP/1.0 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
        close(client);
    }
}
