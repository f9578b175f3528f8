import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.time.ZoneId;
import java.time.ZonedDateTime;
import java.time.Instant;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;
import java.security.KeyStore;

/** Answers questions; TLS and time zones are loaded when they are asked for. */
public class Server {
    interface Answer { String text() throws Exception; }

    static void answer(HttpServer server, String path, Answer answer) {
        server.createContext(path, exchange -> {
            byte[] body;
            int status = 200;
            try {
                body = answer.text().getBytes(StandardCharsets.UTF_8);
            } catch (Throwable error) {
                status = 500;
                body = error.toString().getBytes(StandardCharsets.UTF_8);
            }
            exchange.sendResponseHeaders(status, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
    }

    public static void main(String[] arguments) throws IOException {
        HttpServer server = HttpServer.create(new InetSocketAddress(8000), 0);
        answer(server, "/health", () -> "ok\n");
        answer(server, "/tls", () -> {
            TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
            trust.init((KeyStore) null);
            SSLContext context = SSLContext.getDefault();
            return context.getProtocol() + " " + trust.getTrustManagers().length + "\n";
        });
        answer(server, "/zone", () ->
            ZonedDateTime.ofInstant(Instant.EPOCH, ZoneId.of("Europe/Berlin")) + "\n");
        server.start();
        System.out.println("listening on port 8000");
    }
}
