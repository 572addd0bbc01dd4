// SPDX-License-Identifier: Apache-2.0

package cni

// TestClient*: a service that can be away, late, wrong and back. TestService*
// the real one at CNIPROXY_SOCKET, and namespaces in CNIPROXY_NETNS.

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pb "metropolis/node/core/network/workloads/spec"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// generous is longer than any step takes.
const generous = time.Minute

// double is a service whose answers the test sets.
type double struct {
	pb.UnimplementedWorkloadNetworkingServer
	mu       sync.Mutex
	attached []*pb.AttachRequest
	detached []*pb.DetachRequest
	answer   *pb.AttachResponse
	fail     error         // what Attach and Detach answer
	unready  error         // what Status answers
	hang     chan struct{} // Attach and Detach answer when it is closed
	silent   bool          // and Status as well
	asked    chan string   // names of methods, if it is not full
}

// was records a call.
func (d *double) was(method string) {
	select {
	case d.asked <- method:
	default:
	}
}

// await returns when all these methods have been called, in this order. Status
// may be called in between.
func (d *double) await(t *testing.T, methods ...string) {
	t.Helper()
	for len(methods) > 0 {
		select {
		case got := <-d.asked:
			if got == methods[0] {
				methods = methods[1:]
			} else if got != "Status" {
				t.Fatalf("%s is called, not %s", got, methods[0])
			}
		case <-time.After(generous):
			t.Fatalf("%s is never called", methods[0])
		}
	}
}

func (d *double) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

func (d *double) removed() []*pb.DetachRequest {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.detached
}

func (d *double) outcome(ctx context.Context) error {
	d.mu.Lock()
	hang, fail := d.hang, d.fail
	d.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fail
}

func (d *double) Attach(ctx context.Context, r *pb.AttachRequest) (*pb.AttachResponse, error) {
	d.mu.Lock()
	d.attached = append(d.attached, r)
	d.mu.Unlock()
	d.was("Attach")
	return d.answer, d.outcome(ctx)
}

func (d *double) Detach(ctx context.Context, r *pb.DetachRequest) (*pb.DetachResponse, error) {
	d.mu.Lock()
	d.detached = append(d.detached, r)
	d.mu.Unlock()
	d.was("Detach")
	return &pb.DetachResponse{}, d.outcome(ctx)
}

func (d *double) Status(ctx context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	d.mu.Lock()
	silent, unready := d.silent, d.unready
	d.mu.Unlock()
	d.was("Status")
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r.Report {
		return &pb.StatusResponse{}, nil
	}
	return &pb.StatusResponse{}, unready
}

func good() *pb.AttachResponse {
	return &pb.AttachResponse{
		Ip:            [][]byte{{10, 1, 2, 3}, net.ParseIP("fd00::7")},
		Mac:           []byte{2, 0, 0, 0, 0, 1},
		HostInterface: "wl0",
		Gateway:       [][]byte{{169, 254, 77, 1}, net.ParseIP("fe80::1")},
		Routes: []*pb.Route{
			{Destination: []byte{169, 254, 77, 1}, PrefixLength: 32},
			{Destination: make([]byte, 4), Gateway: []byte{169, 254, 77, 1}},
			{Destination: make([]byte, 16), Gateway: net.ParseIP("fe80::1")},
		},
		Mtu: 1500,
	}
}

// serve listens at path until stop is called.
func serve(t *testing.T, path string, d *double) (stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterWorkloadNetworkingServer(server, d)
	done := make(chan struct{})
	go func() {
		_ = server.Serve(listener)
		close(done)
	}()
	return func() {
		server.Stop()
		<-done
	}
}

// at makes a client as CRI does, for the socket at path.
func at(t *testing.T, path string) CNI {
	t.Helper()
	t.Setenv(socketVariable, path)
	c, err := New(WithMinNetworkCount(2), WithPluginConfDir(""),
		WithPluginMaxConfNum(1), WithPluginDir([]string{"/opt/cni/bin"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Load(WithLoNetwork, WithDefaultConf); err != nil {
		t.Fatal(err)
	}
	return c
}

func socket(t *testing.T) string {
	t.Helper()
	directory, err := os.MkdirTemp("", "cni") // t.TempDir() may be too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	return filepath.Join(directory, "s")
}

func TestClientAway(t *testing.T) {
	c := at(t, socket(t))
	if err := c.Status(); !errors.Is(err, ErrCNINotInitialized) {
		t.Errorf("Status: %v", err)
	}
	_, err := c.Setup(context.Background(), "a", "/n")
	if !errors.Is(err, ErrCNINotInitialized) || !strings.Contains(err.Error(), "cni plugin not initialized") {
		t.Errorf("Setup: %v", err)
	}
	for range 2 {
		if err := c.Remove(context.Background(), "a", ""); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
}

func TestClientNotReady(t *testing.T) {
	unready := status.Error(codes.Unavailable, "no prefix yet")
	d := &double{answer: good(), fail: unready, unready: unready}
	path := socket(t)
	defer serve(t, path, d)()
	c := at(t, path)
	for name, err := range map[string]error{
		"Status": c.Status(),
		"Setup":  func() error { _, err := c.Setup(context.Background(), "a", "/n"); return err }(),
	} {
		if !errors.Is(err, ErrCNINotInitialized) || !strings.Contains(err.Error(), "no prefix yet") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The service is unavailable for another reason than a missing network.
func TestClientBusy(t *testing.T) {
	busy := status.Error(codes.Unavailable, "5 other calls for this workload are under way; try again")
	path := socket(t)
	defer serve(t, path, &double{fail: busy})()
	_, err := at(t, path).Setup(context.Background(), "a", "/n")
	if errors.Is(err, ErrCNINotInitialized) || strings.Contains(err.Error(), "not initialized") ||
		!strings.Contains(err.Error(), "5 other calls") || status.Code(err) != codes.Unavailable {
		t.Errorf("Setup: %v", err)
	}
}

// Remove succeeds at once, and is carried out when there is a service.
func TestClientRemoveWithoutAService(t *testing.T) {
	d := &double{asked: make(chan string, 10)}
	path := socket(t)
	c := at(t, path)
	ctx, cancel := context.WithCancel(context.Background())
	for range 3 {
		if err := c.Remove(ctx, "a", "/n"); err != nil {
			t.Fatal(err)
		}
	}
	cancel() // the caller has gone
	if err := c.Remove(context.Background(), "b", ""); err != nil {
		t.Fatal(err)
	}
	defer serve(t, path, d)()
	d.await(t, "Detach", "Detach")
	got := map[string]string{}
	for _, one := range d.removed() {
		got[one.WorkloadId] = one.GetNetns().GetNetnsPath()
	}
	if len(got) != 2 || got["a"] != "/n" {
		t.Errorf("asked: %v", d.removed())
	}
}

// A removal that is refused later goes on; the next caller gets the error.
func TestClientRemoveThatIsRefusedLater(t *testing.T) {
	d := &double{
		fail:  status.Error(codes.Internal, "detach \"a\": EBUSY"),
		asked: make(chan string, 100),
	}
	path := socket(t)
	c := at(t, path)
	if err := c.Remove(context.Background(), "a", ""); err != nil {
		t.Fatal(err)
	}
	defer serve(t, path, d)()
	d.await(t, "Detach", "Detach")
	if err := c.Remove(context.Background(), "a", ""); status.Code(err) != codes.Internal {
		t.Errorf("again: %v", err)
	}
	d.set(func() { d.fail = nil })
	pending := c.(*client).removals
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		pending.mu.Lock()
		left := len(pending.pending)
		pending.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Since(begun) > generous {
			t.Fatal("it is never done")
		}
	}
}

// A service that accepts calls and does not answer counts as away.
func TestClientRemoveFromASilentService(t *testing.T) {
	d := &double{hang: make(chan struct{}), silent: true, asked: make(chan string, 10)}
	path := socket(t)
	defer serve(t, path, d)()
	if err := at(t, path).Remove(context.Background(), "a", ""); err != nil {
		t.Errorf("Remove: %v", err)
	}
	d.await(t, "Detach", "Status")
}

// Nobody reads the socket, as when the service's process is stopped.
func TestClientRemoveFromAStoppedService(t *testing.T) {
	path := socket(t)
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := at(t, path).Remove(context.Background(), "a", ""); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

// Remove waits for a service that is busy and answers its status.
func TestClientRemoveFromABusyService(t *testing.T) {
	d := &double{
		fail:  status.Error(codes.Internal, "detach \"a\": EBUSY"),
		hang:  make(chan struct{}),
		asked: make(chan string, 10),
	}
	path := socket(t)
	defer serve(t, path, d)()
	c := at(t, path)
	c.(*client).removals.patience = generous // on a busy machine, too
	removed := make(chan error, 1)
	go func() { removed <- c.Remove(context.Background(), "a", "") }()
	d.await(t, "Detach", "Status", "Status")
	select {
	case err := <-removed:
		t.Fatalf("Remove returned %v before the answer", err)
	default:
	}
	close(d.hang)
	if err := <-removed; status.Code(err) != codes.Internal {
		t.Errorf("Remove: %v", err)
	}
}

// A removal from before a Setup does not remove what was set up.
func TestClientSetupAfterARemoval(t *testing.T) {
	d := &double{answer: good(), asked: make(chan string, 10)}
	path := socket(t)
	c := at(t, path)
	if err := c.Remove(context.Background(), "a", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Setup(context.Background(), "a", "/n"); !errors.Is(err, ErrCNINotInitialized) {
		t.Errorf("Setup: %v", err)
	}
	defer serve(t, path, d)()
	for begun := time.Now(); ; {
		// It may take a moment to connect.
		_, err := c.Setup(context.Background(), "a", "/n")
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "connect") || time.Since(begun) > generous {
			t.Fatal(err)
		}
	}
	d.await(t, "Detach", "Attach")
	if _, err := c.Setup(context.Background(), "b", "/n"); err != nil {
		t.Fatal(err)
	}
	d.await(t, "Attach")
}

// Concurrent calls; the race detector checks them.
func TestClientAtOnce(t *testing.T) {
	path := socket(t)
	defer serve(t, path, &double{answer: good()})()
	c := at(t, path)
	ctx := context.Background()
	var all sync.WaitGroup
	for i := range 8 {
		id := string(rune('a' + i%3))
		for _, call := range []func() error{
			func() error { return c.Load(WithPluginDir([]string{id}), WithPluginConfDir(id)) },
			func() error { _, err := json.Marshal(c.GetConfig()); return err },
			func() error { _, err := c.Setup(ctx, id, "/n"); return err },
			func() error { return c.Remove(ctx, id, "") },
			c.Status,
		} {
			all.Add(1)
			go func() {
				defer all.Done()
				for range 20 {
					if err := call(); err != nil {
						t.Error(err)
					}
				}
			}()
		}
	}
	all.Wait()
	if config := c.GetConfig(); config.PluginDirs[0] != config.PluginConfDir {
		t.Errorf("half of a Load: %+v", config)
	}
}

// Load takes all options or none.
func TestClientLoadThatFails(t *testing.T) {
	c := at(t, socket(t))
	wrong := errors.New("wrong")
	err := c.Load(WithPluginConfDir("/else"), func(*settings) error { return wrong })
	if !errors.Is(err, wrong) || c.GetConfig().PluginConfDir != "" {
		t.Errorf("%v, %+v", err, c.GetConfig())
	}
}

func TestClientFindsARestartedService(t *testing.T) {
	path := socket(t)
	c := at(t, path)
	for range 3 {
		stop := serve(t, path, &double{answer: good()})
		deadline := time.Now().Add(10 * time.Second)
		for c.Status() != nil && time.Now().Before(deadline) {
		}
		if _, err := c.Setup(context.Background(), "a", "/n"); err != nil {
			t.Error(err)
		}
		stop()
		if err := c.Status(); !errors.Is(err, ErrCNINotInitialized) {
			t.Errorf("Status after the end: %v", err)
		}
	}
}

func TestClientRefusals(t *testing.T) {
	d := &double{answer: good(), fail: status.Error(codes.ResourceExhausted, "10.0.0.0/30 is full")}
	path := socket(t)
	defer serve(t, path, d)()
	c := at(t, path)
	_, err := c.Setup(context.Background(), "a", "/n")
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), `setup "a" at "/n"`) {
		t.Errorf("Setup: %v", err)
	}
	// This is an answer: it is not tried again.
	if err := c.Remove(context.Background(), "a", "/n"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("Remove: %v", err)
	}
	if asked := d.removed(); len(asked) != 1 || asked[0].Netns.NetnsPath != "/n" {
		t.Errorf("asked: %v", asked)
	}
}

func TestClientHangingSetupHoldsUpNobody(t *testing.T) {
	d := &double{answer: good(), hang: make(chan struct{})}
	path := socket(t)
	defer serve(t, path, d)()
	c := at(t, path)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	hung := make(chan error)
	go func() {
		_, err := c.Setup(ctx, "a", "/n")
		hung <- err
	}()
	if err := c.Status(); err != nil {
		t.Errorf("Status while a Setup hangs: %v", err)
	}
	if err := <-hung; status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("Setup past its deadline: %v", err)
	}
	close(d.hang)
	if err := c.Remove(context.Background(), "a", "/n"); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func TestClientRequest(t *testing.T) {
	d := &double{answer: good()}
	path := socket(t)
	defer serve(t, path, d)()
	c := at(t, path)
	result, err := c.SetupSerially(context.Background(), "sandbox", "/n",
		WithLabels(map[string]string{"K8S_POD_NAME": "p\xff"}),
		WithCapability(podAnnotations, map[string]string{"a": "b"}),
		WithCapabilityPortMap([]PortMapping{{8080, 80, "TCP", "2001:db8::1"}}),
		WithCapabilityBandWidth(BandWidth{1, 2, 3, 4}),
		WithCapabilityDNS(DNS{Servers: []string{"10.0.0.1"}, Searches: []string{"x"}, Options: []string{"o"}}),
		WithCapabilityCgroupPath("/kubepods/x"))
	if err != nil {
		t.Fatal(err)
	}
	sent := d.attached[0]
	if sent.WorkloadId != "sandbox" || sent.Netns.NetnsPath != "/n" || sent.Netns.IfName != "eth0" ||
		sent.Labels["K8S_POD_NAME"] != "p\uFFFD" || sent.Annotations["a"] != "b" ||
		len(sent.PortMapping) != 1 || sent.PortMapping[0].HostPort != 8080 ||
		sent.Bandwidth.IngressRate != 1 || sent.Bandwidth.IngressBurst != 2 ||
		sent.Bandwidth.EgressRate != 3 || sent.Bandwidth.EgressBurst != 4 ||
		sent.Dns.Servers[0] != "10.0.0.1" || sent.CgroupPath != "/kubepods/x" {
		t.Errorf("sent: %v", sent)
	}
	if result.DNS[0].Nameservers[0] != "10.0.0.1" {
		t.Errorf("DNS: %v", result.DNS)
	}
	_, err = c.Setup(context.Background(), "s", "/n", WithCapability("ipRanges", 1))
	if !errors.Is(err, ErrInvalidConfig) {
		t.Errorf("capability: %v", err)
	}
}

// The JSON that containerd stores is go-cni's, both ways.
func TestClientResult(t *testing.T) {
	made, err := newResult("/n", nil, good())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"Interfaces":{"eth0":{"IPConfigs":[{"IP":"10.1.2.3","Gateway":"169.254.77.1"},` +
		`{"IP":"fd00::7","Gateway":"fe80::1"}],"Mac":"02:00:00:00:00:01","Sandbox":"/n","PciID":"","SocketPath":""},` +
		`"wl0":{"IPConfigs":null,"Mac":"` + firstHopMAC + `","Sandbox":"","PciID":"","SocketPath":""}},` +
		`"DNS":[{}],"Routes":[{"dst":"169.254.77.1/32","scope":253},{"dst":"0.0.0.0/0","gw":"169.254.77.1"},` +
		`{"dst":"::/0","gw":"fe80::1"}]}`
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	var again Result
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if ip := again.Interfaces["eth0"].IPConfigs[1].IP.String(); ip != "fd00::7" {
		t.Errorf("IP %s", ip)
	}
	// What stock containerd left behind, with the bridge and loopback plugins.
	stock := `{"Interfaces":{"cni0":{"IPConfigs":null,"Mac":"aa:aa:aa:aa:aa:aa","Sandbox":"","PciID":"","SocketPath":""},` +
		`"lo":{"IPConfigs":[{"IP":"127.0.0.1","Gateway":""}],"Mac":"00:00:00:00:00:00","Sandbox":"/n","PciID":"","SocketPath":""}},` +
		`"DNS":[{},{"nameservers":["1.1.1.1"]}],"Routes":[{"dst":"0.0.0.0/0","mtu":1400}]}`
	if err := json.Unmarshal([]byte(stock), &again); err != nil {
		t.Error(err)
	}
}

func TestClientGarbage(t *testing.T) {
	for name, spoil := range map[string]func(*pb.AttachResponse){
		"no address":   func(r *pb.AttachResponse) { r.Ip = nil },
		"address":      func(r *pb.AttachResponse) { r.Ip[0] = []byte{1} },
		"gateway":      func(r *pb.AttachResponse) { r.Gateway[0] = nil },
		"route":        func(r *pb.AttachResponse) { r.Routes[0].Destination = nil },
		"route prefix": func(r *pb.AttachResponse) { r.Routes[0].PrefixLength = 1 << 31 },
	} {
		response := good()
		spoil(response)
		if _, err := newResult("/n", nil, response); !errors.Is(err, ErrInvalidResult) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClientGetConfig(t *testing.T) {
	text, err := json.Marshal(at(t, socket(t)).GetConfig())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"PluginDirs":["/opt/cni/bin"],"PluginConfDir":"","PluginMaxConfNum":1,"Prefix":"eth",` +
		`"Networks":[{"Config":{"Name":"metropolis","CNIVersion":"1.1.0"},"IFName":"eth0"}]}`
	if string(text) != want {
		t.Errorf("got %s", text)
	}
}

func TestServiceLife(t *testing.T) {
	netns := strings.Split(os.Getenv("CNIPROXY_NETNS"), ":")
	if len(netns) != 2 {
		t.Fatal("CNIPROXY_NETNS does not name two namespaces")
	}
	c := at(t, os.Getenv(socketVariable))
	ctx := context.Background()
	if err := c.Status(); err != nil {
		t.Fatal(err)
	}
	first, err := c.Setup(ctx, "go-a", netns[0], WithLabels(map[string]string{"K8S_POD_NAME": "a"}))
	if err != nil {
		t.Fatal(err)
	}
	if found := first.Interfaces["eth0"].IPConfigs; len(found) != 2 {
		t.Errorf("addresses: %v", found)
	}
	again, err := c.Setup(ctx, "go-a", netns[0])
	one, _ := json.Marshal(first)
	two, _ := json.Marshal(again)
	if err != nil || string(one) != string(two) {
		t.Errorf("again: %s, %v", two, err)
	}
	// A sandbox without a namespace, and a limit that is too low.
	if _, err := c.Setup(ctx, "go-b", "/nowhere"); status.Code(err) != codes.NotFound {
		t.Errorf("no namespace: %v", err)
	}
	_, err = c.Setup(ctx, "go-b", netns[1], WithCapabilityBandWidth(BandWidth{IngressRate: 1000}))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "ingress_rate 1000") {
		t.Errorf("a limit: %v", err)
	}
	// Another's namespace leaves it alone; the id alone is enough.
	if err := c.Remove(ctx, "go-a", netns[1]); err != nil {
		t.Error(err)
	}
	if again, err := c.Setup(ctx, "go-a", netns[0]); err != nil || again.Interfaces["eth0"].Mac != first.Interfaces["eth0"].Mac {
		t.Errorf("after another's Remove: %v, %v", again, err)
	}
	for range 2 {
		if err := c.Remove(ctx, "go-a", ""); err != nil {
			t.Error(err)
		}
	}
	if err := c.Remove(ctx, "never-there", ""); err != nil {
		t.Error(err)
	}
}
