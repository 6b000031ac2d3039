// Java's server, run with -Dsun.net.httpserver.idleInterval=SECONDS.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.concurrent.Executors;

public class Serve {
    public static void main(String[] arguments) throws Exception {
        Path count = Path.of(System.getenv("COUNT"));
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            exchange.getRequestBody().readAllBytes();
            String line = exchange.getRequestHeaders().getFirst("retry-id") + "\n";
            Files.writeString(count, line, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
            exchange.sendResponseHeaders(200, 2);
            exchange.getResponseBody().write("ok".getBytes());
            exchange.close();
        });
        // In good order: what is under way is answered.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> server.stop(5)));
        server.start();
    }
}
